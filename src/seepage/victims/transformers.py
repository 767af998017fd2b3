"""Victims from transformers: vision models, and the vision towers of those that read more than pictures."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from ..hubs import quiet_transformers
from ..registry import register, suggest
from ..types import SeepageError
from . import processors
from .checkpoints import folder_state, hub_state, load_tower
from .families import boundaries
from .hub import hugging_face_file
from .settings import check_settings, join_settings, split_settings
from .source import File, Network, Random, Request, Tag
from .victim import UnknownVictimError, WeightsError
from .weights import read_state

# What a config works out from its other settings.
_DERIVED = ("model_type", "transformers_version", "stage_names", "out_features", "out_indices")


@dataclass(frozen=True)
class _Origin:
    """What a name stands for: a model type with settings, a local folder, or a hub id (`folder` holds its config)."""

    config: Any
    name: str
    folder: Path | None
    hub: str | None


@register("victim", "hf")
@dataclass(frozen=True)
class Transformers:
    """transformers' vision models and towers."""

    about: ClassVar[str] = "transformers: a hub id, a folder with config.json, or a model type with settings"

    def names(self) -> tuple[str, ...]:
        """Return the model types that read pictures, empty where transformers is not installed."""
        try:
            from transformers.models.auto import modeling_auto
        except ImportError:
            return ()
        mappings = (
            modeling_auto.MODEL_FOR_IMAGE_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        )
        return tuple(sorted({name for mapping in mappings for name in mapping}))

    def examples(self) -> dict[str, str]:
        """Return three forms of a name."""
        return {
            "hf/openai/clip-vit-base-patch32": "the vision tower of a hub id",
            "hf/path/to/folder": "a folder with config.json and model.safetensors",
            "hf/dinov2:hidden_size=384,num_attention_heads=6@file.safetensors": "a model type with settings",
        }

    def build(self, request: Request) -> Network:
        """Build one. A model type has no weights of its own; `num_labels` among its settings makes it a classifier."""
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise SeepageError("hf victims need the extra: pip install 'seepage[hf]'") from error
        with quiet_transformers():
            origin = _origin(request)
            vision = _vision_config(origin.config)
            model_class = _model_class(origin.config, vision, f"hf/{origin.name}")
            preprocessing = processors.of_folder(origin.folder, request.size)
            if preprocessing is None:
                preprocessing = processors.of_type(vision, request.size)
            _set_size(vision, preprocessing.image_shape, origin, request)
            model = _model(model_class, vision, origin, request)
        model.register_forward_hook(_tensor)
        # A hub id's default revision is spelled out; types and folders have none.
        own = "main" if origin.hub and request.weights is None else request.weights
        return Network(
            name=origin.name if own is None else f"{origin.name}@{own}",
            model=model,
            preprocessing=preprocessing,
            boundaries=boundaries(model),
            classes=None if isinstance(request.weights, File | Random) else _classes(model_class, vision),
            scores=model_class.__name__.endswith("ForImageClassification"),
        )


def _tensor(module: nn.Module, inputs: Any, output: Any) -> Tensor:
    """Reduce transformers' output record to one tensor: the logits, else the pooled vector, else the last features."""
    for key in ("logits", "pooler_output", "last_hidden_state"):
        value = getattr(output, key, None)
        if isinstance(value, Tensor):
            return value
    raise SeepageError(f"{type(module).__name__} gives neither logits nor features")


def _origin(request: Request) -> _Origin:
    from transformers import CONFIG_MAPPING, AutoConfig

    typed, settings = split_settings(request.name)
    if typed in CONFIG_MAPPING:
        config = CONFIG_MAPPING[typed]()
        vision = _vision_config(config)
        labels = settings.pop("num_labels", None)
        check_settings(f"hf/{typed}", settings, vision.to_dict())
        changed = _changed(vision, settings, request.name)
        if labels is not None:
            settings["num_labels"] = changed.num_labels = labels
            changed.architectures = [_classifier(changed.model_type)]
        return _Origin(changed, join_settings(typed, settings), None, None)
    if settings:
        raise UnknownVictimError(f"settings go with a model type of transformers, got hf/{request.name}")
    hub = None
    folder = Path(typed)
    if not folder.is_dir():
        if typed.count("/") != 1:
            near = suggest(typed, CONFIG_MAPPING.keys())
            raise UnknownVictimError(
                f"hf/{typed} is no model type, no folder with config.json and no hub id OWNER/NAME{near}"
            )
        hub = typed
        folder = hugging_face_file(hub, ("config.json",), _instead(typed), _revision(request)).parent
        with contextlib.suppress(WeightsError):  # many have none: then the type's own preprocessing serves
            hugging_face_file(hub, processors.FILES, "", _revision(request))
    if not (folder / "config.json").is_file():
        raise UnknownVictimError(f"hf/{typed}: the folder has no config.json")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnknownVictimError(f"hf/{typed}: config.json is of no model that transformers knows") from error
    return _Origin(config, typed, folder, hub)


def _changed(vision: Any, settings: dict[str, Any], typed: str) -> Any:
    """Build a config anew, for what it derives from its settings (stage names) to follow them."""
    from huggingface_hub.errors import StrictDataclassError

    kept = {key: value for key, value in vision.to_diff_dict().items() if key not in _DERIVED}
    try:
        return type(vision)(**(kept | settings))
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise UnknownVictimError(f"hf/{typed}: transformers refuses these settings: {reason}") from error


def _instead(name: str) -> str:
    return f"hf/MODEL_TYPE:settings@random or the path of a folder that holds {name}'s config.json and weights"


def _revision(request: Request) -> str | None:
    return request.weights.name if isinstance(request.weights, Tag) else None


def _vision_config(config: Any) -> Any:
    return getattr(config, "vision_config", None) or config


def _model_class(config: Any, vision: Any, name: str) -> Any:
    """Return the class that takes pixel values and nothing else: a classifier's where the checkpoint says so."""
    import transformers

    if vision is config:
        for architecture in config.architectures or ():
            if architecture.endswith("ForImageClassification"):
                return getattr(transformers, architecture)
    known: Any = transformers.MODEL_MAPPING
    found = known.get(type(vision), None) or _searched(vision)
    candidates = found if isinstance(found, tuple) else (found,)
    for candidate in candidates:
        if candidate is not None and candidate.main_input_name == "pixel_values" and _takes_pictures_alone(candidate):
            return candidate
    raise UnknownVictimError(
        f"{name}: transformers has no vision model for {vision.model_type!r} that takes pixel values alone; "
        "known to work: hf/clip, hf/siglip, hf/vit, hf/dinov2, hf/resnet, hf/blip-2, hf/llava"
    )


def _searched(vision: Any) -> Any:
    """Find the model of a vision config beside it, where transformers' own table has none (BLIP-2)."""
    try:
        module = importlib.import_module(type(vision).__module__.replace(".configuration_", ".modeling_"))
    except ModuleNotFoundError:
        return None
    for _, member in inspect.getmembers(module, inspect.isclass):
        if getattr(member, "config_class", None) is type(vision) and "For" not in member.__name__:
            return member
    return None


def _takes_pictures_alone(model_class: Any) -> bool:
    parameters = list(inspect.signature(model_class.forward).parameters.values())[2:]
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return all(item.default is not inspect.Parameter.empty or item.kind in kinds for item in parameters)


def _classifier(model_type: str) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    name = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(model_type)
    if name is None:
        raise UnknownVictimError(f"transformers has no image classifier of type {model_type!r}; leave num_labels out")
    return name if isinstance(name, str) else str(name[0])


def _set_size(vision: Any, image_shape: tuple[int, int, int], origin: _Origin, request: Request) -> None:
    """Tell a network with a table of positions its input size; one with weights keeps the table it was trained with."""
    size = getattr(vision, "image_size", None)
    if request.size is None or size is None or vision.model_type.startswith("dinov"):
        return
    if origin.folder is not None and not isinstance(request.weights, Random) and request.size != size:
        raise SeepageError(f"hf/{origin.name} knows positions for {size} pixels alone, got size {request.size}")
    vision.image_size = image_shape[1]


def _model(model_class: Any, vision: Any, origin: _Origin, request: Request) -> nn.Module:
    # Eager attention has derivatives of every order and direction; the fused kernels do not.
    vision._attn_implementation = "eager"
    if isinstance(request.weights, Random):
        fresh: nn.Module = model_class(vision)
        return fresh
    if isinstance(request.weights, File):
        return load_tower(model_class, vision, read_state(request.weights.path), str(request.weights))
    if origin.hub is not None:
        state = hub_state(origin.hub, _revision(request), _instead(origin.hub))
    elif origin.folder is not None:
        state = folder_state(origin.folder)
    else:
        raise WeightsError(
            f"hf/{origin.name} is a model type and has no weights of its own; type @random, @path/file.safetensors, "
            "or a hub id instead"
        )
    return load_tower(model_class, vision, state, f"hf/{origin.name}")


def _classes(model_class: Any, vision: Any) -> tuple[str, ...] | None:
    if not model_class.__name__.endswith("ForImageClassification"):
        return None
    names = tuple(str(vision.id2label[index]) for index in range(vision.num_labels))
    return None if names[0] == "LABEL_0" else names
