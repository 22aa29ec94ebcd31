"""Image classifiers of Hugging Face's transformers, from a local folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gpubench import cache, plugins
from gpubench.errors import InputError
from gpubench.suite.types import model_path
from gpubench.workload.data import preprocess
from gpubench.workload.models import preprocessor_config
from gpubench.workload.models.torch_model import Published, TorchSource, default_only

if TYPE_CHECKING:
    from torch import nn

    from gpubench.suite.types import Workload
    from gpubench.workload.data.preprocess import Spec

_TYPE = "model_type"
_LEFT_OUT = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")


class Transformers(TorchSource):
    name = "hf"
    summary = "hf/FOLDER or hf/ID: an image classifier of transformers"
    preload = ("transformers",)

    def probe(self) -> dict[str, str]:
        return plugins.installed("torch", "transformers", extra="hf")

    def arguments(self, model: str) -> dict[str, Any]:
        """Its configuration, so that nothing is asked of the hub once it is prepared."""
        from transformers import AutoConfig

        config = _asked(model, AutoConfig.from_pretrained).to_dict()
        return {k: v for k, v in config.items() if v is not None and k not in _LEFT_OUT}

    def at_size(self, model: str, size: tuple[int, int]) -> dict[str, Any]:  # noqa: ARG002
        return {"image_size": size[0] if size[0] == size[1] else list(size)}

    def build(self, model: str, classes: int, arguments: dict[str, Any]) -> nn.Module:
        from transformers import AutoModelForImageClassification

        config = _config(model, arguments)
        if config.num_labels != classes:
            config.num_labels = classes
        try:
            module: nn.Module = AutoModelForImageClassification.from_config(config)
        except ValueError as error:
            raise InputError(
                f"model {model!r}: {config.model_type} is no image classifier of transformers: "
                f"{str(error).splitlines()[0][:300]}"
            ) from error
        return module

    def spec(self, workload: Workload, module: nn.Module) -> Spec:
        """As its image processor says; without one, where the suite says, at the network's size."""
        from transformers import AutoImageProcessor

        try:
            said = _asked(workload.model, AutoImageProcessor.from_pretrained).to_dict()
        except InputError as error:
            side = getattr(module.config, "image_size", 224)
            if workload.preprocess is None or not isinstance(side, int):
                raise InputError(
                    f"{error}; or say what it does in [workload.preprocess]"
                ) from error
            return preprocess.assumed((side, side))
        data = msgspec.json.encode(said, enc_hook=str)
        try:
            return preprocessor_config.of(data, preprocess.assumed((224, 224)), "its processor")
        except ValueError as error:
            raise InputError(
                f"model {workload.model!r}: its image processor {error}; give [workload.preprocess]"
            ) from error

    def published(self, workload: Workload, arguments: dict[str, Any]) -> Published:
        """'DEFAULT': those that lie in the folder, or at the hub."""
        from transformers import AutoModelForImageClassification

        default_only(workload, f"those of {workload.model}")
        config = _config(workload.model, arguments)
        module, report = _asked(
            workload.model,
            AutoModelForImageClassification.from_pretrained,
            config=config,
            dtype="float32",
            output_loading_info=True,
        )
        lacking = sorted(report["missing_keys"])
        if lacking:  # transformers makes them up, and warns
            shown = ", ".join(map(repr, lacking[:3])) + ", ..." * (len(lacking) > 3)
            raise InputError(
                f"model {workload.model!r}: its weights lack {len(lacking)} tensors of an image "
                f"classifier ({shown}): it is another kind of network, or was never fine-tuned"
            )
        return Published(module, self.spec(workload, module))

    def classes(self, workload: Workload) -> tuple[str, ...]:
        names = _config(workload.model, self.arguments(workload.model)).id2label
        found = tuple(str(names[number]) for number in sorted(names))
        return () if all(name.startswith("LABEL_") for name in found) else found

    def files(self, model: str) -> dict[str, str]:
        """What lies in the folder."""
        folder = Path(model_path(model)).expanduser()
        inside = [p for p in sorted(folder.iterdir()) if p.is_file()] if folder.is_dir() else []
        return {str(p): cache.digest(p) for p in inside}


def _config(model: str, arguments: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    rest = {key: value for key, value in arguments.items() if key != _TYPE}
    try:
        return AutoConfig.for_model(arguments[_TYPE], **rest)
    except (KeyError, TypeError, ValueError) as error:
        words = str(error).splitlines()[0][:300]
        raise InputError(f"model {model!r}, its configuration: {words}") from error


def _asked(model: str, ask: Any, **more: Any) -> Any:
    """What transformers makes of the model's folder or name. Raises InputError."""
    place = model_path(model)
    try:
        return ask(place, **more)
    except Exception as error:  # its hub's client has many kinds
        words = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
        if "Unrecognized configuration class" in words:
            raise InputError(
                f"model {model!r} is no image classifier of transformers: {words}"
            ) from error
        local = "" if Path(place).is_absolute() else ", and there is no such folder"
        raise InputError(
            f"model {model!r} cannot be had: {type(error).__name__}: {words}{local}; give a folder "
            "that save_pretrained has written (with config.json, the weights and "
            "preprocessor_config.json)"
        ) from error
