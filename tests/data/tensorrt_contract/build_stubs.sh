#!/bin/sh
# usage: build_stubs.sh OUTDIR MAJOR   (MAJOR: the release that the libraries pose as, 10 or 11)
set -eu
out=$1; major=$2; here=$(cd "$(dirname "$0")" && pwd); mkdir -p "$out"
for pair in nvinfer:LIB_NVINFER nvinfer_plugin:LIB_PLUGIN nvonnxparser:LIB_PARSER; do
  name=lib${pair%%:*}.so.$major; define=${pair##*:}
  "${CC:-cc}" -shared -fPIC -O1 "-D$define" "-Wl,-soname,$name" -o "$out/$name" "$here/stub.c"
done
