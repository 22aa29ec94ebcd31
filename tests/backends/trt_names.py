"""Which TensorRT names the backend's source uses: a small type inference over its syntax trees.

A name ``trt`` is the module. What a call or an attribute gives is in RETURNS, so every object that
comes from TensorRT is followed through assignments, ``self``, returns and parameters. Where one
would escape (an unknown attribute, an unlisted function, ``getattr``), the walk says so, which is
what makes the list complete.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PLAIN = ""
"""The type of whatever is not TensorRT's: numbers, strings, shapes, enum members."""
MODULE = "module"

RETURNS = {
    "Builder.build_serialized_network": "IHostMemory",
    "Builder.create_builder_config": "IBuilderConfig",
    "Builder.create_network": "INetworkDefinition",
    "Builder.create_optimization_profile": "IOptimizationProfile",
    "BuilderFlag.REQUIRE_USER_ALLOCATION": PLAIN,
    "BuilderFlag.TF32": PLAIN,
    "ComputeCapability.CURRENT": PLAIN,
    "ComputeCapability.__members__": PLAIN,
    "DataType.BF16": PLAIN,
    "DataType.FLOAT": PLAIN,
    "DataType.HALF": PLAIN,
    "DataType.INT32": PLAIN,
    "DataType.INT64": PLAIN,
    "DataType.UINT8": PLAIN,
    "DynamicShapesKernelSpecializationStrategy.EAGER": PLAIN,
    "EngineInspector.get_engine_information": PLAIN,
    "ExecutionContextAllocationStrategy.USER_MANAGED": PLAIN,
    "IBuilderConfig.add_optimization_profile": PLAIN,
    "IBuilderConfig.all_build_routes": PLAIN,
    "IBuilderConfig.avg_timing_iterations": PLAIN,
    "IBuilderConfig.build_route": PLAIN,
    "IBuilderConfig.builder_optimization_level": PLAIN,
    "IBuilderConfig.clear_flag": PLAIN,
    "IBuilderConfig.create_timing_cache": "ITimingCache",
    "IBuilderConfig.get_flag": PLAIN,
    "IBuilderConfig.num_compute_capabilities": PLAIN,
    "IBuilderConfig.profiling_verbosity": PLAIN,
    "IBuilderConfig.set_compute_capability": PLAIN,
    "IBuilderConfig.set_flag": PLAIN,
    "IBuilderConfig.set_memory_pool_limit": PLAIN,
    "IBuilderConfig.set_timing_cache": PLAIN,
    "ICudaEngine.create_engine_inspector": "EngineInspector",
    "ICudaEngine.create_execution_context": "IExecutionContext",
    "ICudaEngine.create_runtime_config": "IRuntimeConfig",
    "ICudaEngine.device_memory_size_v2": PLAIN,
    "ICudaEngine.get_tensor_dtype": PLAIN,
    "ICudaEngine.get_tensor_mode": PLAIN,
    "ICudaEngine.get_tensor_name": PLAIN,
    "ICudaEngine.get_tensor_shape": PLAIN,
    "ICudaEngine.num_io_tensors": PLAIN,
    "ICudaEngine.num_layers": PLAIN,
    "IExecutionContext.execute_async_v3": PLAIN,
    "IExecutionContext.get_tensor_shape": PLAIN,
    "IExecutionContext.infer_shapes": PLAIN,
    "IExecutionContext.is_stream_capturable": PLAIN,
    "IExecutionContext.set_device_memory": PLAIN,
    "IExecutionContext.set_input_shape": PLAIN,
    "IExecutionContext.set_tensor_address": PLAIN,
    "IExecutionContext.update_device_memory_size_for_shapes": PLAIN,
    "ILogger.ERROR": PLAIN,
    "ILogger.INTERNAL_ERROR": PLAIN,
    "INetworkDefinition.get_input": "ITensor",
    "INetworkDefinition.num_inputs": PLAIN,
    "IOptimizationProfile.set_shape": PLAIN,
    "IRuntimeCache.deserialize": PLAIN,
    "IRuntimeCache.serialize": "IHostMemory",
    "IRuntimeConfig.create_runtime_cache": "IRuntimeCache",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": PLAIN,
    "IRuntimeConfig.set_execution_context_allocation_strategy": PLAIN,
    "IRuntimeConfig.set_runtime_cache": PLAIN,
    "ITensor.name": PLAIN,
    "ITensor.shape": PLAIN,
    "ITimingCache.serialize": "IHostMemory",
    "LayerInformationFormat.JSON": PLAIN,
    "MemoryPoolType.WORKSPACE": PLAIN,
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": PLAIN,
    "OnnxParser.get_error": "ParserError",
    "OnnxParser.num_errors": PLAIN,
    "OnnxParser.parse_from_file": PLAIN,
    "ParserError.desc": PLAIN,
    "ProfilingVerbosity.DETAILED": PLAIN,
    "Runtime.deserialize_cuda_engine": "ICudaEngine",
    "TensorIOMode.INPUT": PLAIN,
}
CLASSES = {name.split(".")[0] for name in RETURNS}
PARAMETERS = {
    "trt": MODULE,
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "timings": "ITimingCache",
    "engine": "ICudaEngine",
}
"""Parameters of the backend's own functions that carry TensorRT's objects."""
OURS = {
    "load_flavour": MODULE,
    "_context_rtx": "IExecutionContext",
    "_attach_timing_cache_trt": "ITimingCache",
}
"""The backend's own functions that return such objects."""
HARMLESS = {"tuple", "bytes", "int", "failed"}
"""Functions that may be given such an object without handing it on."""


class Walk(ast.NodeVisitor):
    """Collects ``names`` ('Class.attribute' -> scopes: all, rtx, trt, trt11) and ``problems``."""

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = {}
        self.problems: list[str] = []
        self.own: dict[str, list[str]] = {}
        self.held: dict[str, str] = {}  # self.<attribute> -> class
        self.local: dict[str, str] = {}
        self.scope = "all"

    def source(self, text: str) -> Walk:
        """Walk one module twice: what ``self`` holds is known after the first time."""
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                self.own[node.name] = [a.arg for a in node.args.args if a.arg != "self"]
            if isinstance(node, ast.ClassDef):
                self.own[node.name] = [
                    a.arg
                    for method in node.body
                    if isinstance(method, ast.FunctionDef) and method.name == "__init__"
                    for a in method.args.args[1:]
                ]
        for _ in range(2):
            self.problems = []
            self.visit(tree)
        return self

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = self.local, self.scope
        given = {a.arg: PARAMETERS.get(a.arg, PLAIN) for a in node.args.args}
        self.local = self.local | given
        self.scope = next(
            (s for s in ("rtx", "trt", "trt11") if node.name.endswith("_" + s)), self.scope
        )
        self.generic_visit(node)
        self.local, self.scope = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        kind = self.infer(node.value)
        for target in node.targets:
            pairs = [(target, kind)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = [
                    (t, self.infer(v)) for t, v in zip(target.elts, node.value.elts, strict=True)
                ]
            for place, its in pairs:
                self.bind(place, its)

    def bind(self, place: ast.expr, kind: str) -> None:
        if isinstance(place, ast.Name):
            self.local[place.id] = kind
        elif isinstance(place, ast.Attribute) and ast.unparse(place.value) == "self":
            if kind:
                self.held[place.attr] = kind
        else:
            self.infer(place)
            if kind:
                self.problem(place, f"a {kind} is stored where it cannot be followed")

    def generic_visit(self, node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.infer(child)
            else:
                self.visit(child)

    def infer(self, node: ast.expr) -> str:
        """The TensorRT class of an expression, or PLAIN; records every attribute on the way."""
        if isinstance(node, ast.Name):
            return MODULE if node.id == "trt" else self.local.get(node.id, PLAIN)
        if isinstance(node, ast.Attribute):
            return self.attribute(node)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.IfExp):
            self.infer(node.test)
            return self.infer(node.body) or self.infer(node.orelse)
        self.generic_visit(node)
        return PLAIN

    def attribute(self, node: ast.Attribute) -> str:
        if ast.unparse(node.value) == "self":
            return self.held.get(node.attr, PLAIN)
        kind = self.infer(node.value)
        if not kind:
            return PLAIN
        name = node.attr if kind == MODULE else f"{kind}.{node.attr}"
        self.names.setdefault(name, set()).add(self.scope)
        if kind == MODULE:
            known = name in CLASSES or name in ("__version__", "Builder", "OnnxParser", "Runtime")
        else:
            known = name in RETURNS
        if not known:
            self.problem(node, f"{name} is not in the table")
        if kind == MODULE:
            return name if name in CLASSES else PLAIN
        return RETURNS.get(name, PLAIN)

    def call(self, node: ast.Call) -> str:
        function = node.func
        result = self.infer(function)
        theirs = isinstance(function, ast.Attribute) and bool(self.infer(function.value))
        called = function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)
        for argument, wanted in self.arguments(node, called):
            kind = self.infer(argument)
            if kind and not theirs and called not in HARMLESS and kind != wanted:
                self.problem(node, f"{kind} escapes into {called}()")
        return result or OURS.get(called, PLAIN)

    def arguments(self, node: ast.Call, called: str) -> Iterator[tuple[ast.expr, str]]:
        names = self.own.get(called, [])
        for position, argument in enumerate(node.args):
            name = names[position] if position < len(names) else ""
            yield argument, PARAMETERS.get(name, PLAIN)
        for keyword in node.keywords:
            yield keyword.value, PARAMETERS.get(keyword.arg or "", PLAIN)

    def problem(self, node: ast.AST, text: str) -> None:
        self.problems.append(f"line {getattr(node, 'lineno', '?')}: {text}")


def walk(*paths: Path) -> Walk:
    """Walk the backend's modules; functions of one may be called in another."""
    found = Walk()
    problems = []
    for path in paths:
        found.held = {}
        found.source(path.read_text())
        problems += [f"{path.name}, {text}" for text in found.problems]
    found.problems = problems
    return found
