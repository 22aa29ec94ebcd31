#!/bin/sh
# usage: build_stubs.sh OUTDIR MAJOR   (MAJOR: the release that the libraries pose as: 10 or 11, or
# 1 of TensorRT for RTX, whose libraries have names of their own)
set -eu
out=$1; major=$2; here=$(cd "$(dirname "$0")" && pwd); mkdir -p "$out"
for pair in nvinfer:LIB_NVINFER nvinfer_plugin:LIB_PLUGIN nvonnxparser:LIB_PARSER \
            tensorrt_rtx:LIB_NVINFER tensorrt_onnxparser_rtx:LIB_PARSER; do
  name=lib${pair%%:*}.so.$major; define=${pair##*:}
  "${CC:-cc}" -shared -fPIC -O1 "-D$define" "-Wl,-soname,$name" -o "$out/$name" "$here/stub.c"
done
