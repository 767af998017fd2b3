"""Victims from open_clip: the visual tower alone, built without its text tower."""

from __future__ import annotations

import dataclasses
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from ..registry import register, suggest
from ..types import SeepageError
from .families import boundaries
from .hub import hugging_face_file, torch_hub_file
from .preprocess import ONES, ZEROS, Preprocessing
from .settings import check_settings, join_settings, split_settings
from .source import File, Network, Request, Tag
from .victim import UnknownVictimError, WeightsError
from .weights import fit, read_state

_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# open_clip builds both towers at once; this stands in for the text tower, which is thrown away.
_NO_TEXT = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}


@register("victim", "open_clip")
@dataclass(frozen=True)
class OpenClip:
    """open_clip's visual towers, with the preprocessing of their weights."""

    about: ClassVar[str] = "CLIP's and SigLIP's visual towers; weights by tags, e.g. @openai"

    def names(self) -> tuple[str, ...]:
        """Return open_clip's list, empty where it is not installed."""
        try:
            import open_clip
        except ImportError:
            return ()
        return tuple(open_clip.list_models())

    def examples(self) -> dict[str, str]:
        """Return three forms of a name."""
        return {
            "open_clip/RN50@openai": "CLIP's ResNet-50 tower with OpenAI's weights",
            "open_clip/ViT-B-16-SigLIP@random": "SigLIP's tower with initial weights, no download",
            "open_clip/ViT-L-14:layers=2@random": "settings of the vision config change the architecture",
        }

    def build(self, request: Request) -> Network:
        """Build one; the weights must be named: a tag, @random or @file."""
        try:
            import open_clip
        except ImportError as error:
            raise SeepageError("open_clip victims need the extra: pip install 'seepage[clip]'") from error
        typed, settings = split_settings(request.name)
        name = typed.replace("/", "-")
        config = open_clip.get_model_config(name)
        if config is None:
            raise UnknownVictimError(f"open_clip has no model {typed!r}{suggest(name, open_clip.list_models())}")
        tags = open_clip.list_pretrained_tags_by_model(name)
        weights = _pretrained(name, tags, request)
        # A tag knows its activation; of a file nobody does, so that it is the name's (`ViT-B-32-quickgelu`).
        quick_gelu = (weights if isinstance(request.weights, Tag) else config).get("quick_gelu", False)
        visual = _visual(config, settings, request.size, quick_gelu)
        if isinstance(request.weights, Tag):
            _load(visual, _file(weights, f"open_clip/{name}"))
        elif isinstance(request.weights, File):
            _load(visual, request.weights.path)
        return Network(
            name=f"{join_settings(name, settings)}@{request.weights}",
            model=visual,
            preprocessing=_preprocessing(visual, weights),
            boundaries=boundaries(visual),
        )


def _pretrained(name: str, tags: list[str], request: Request) -> dict[str, Any]:
    """Return what open_clip knows of the weights; for initial ones and files, of the model's first tag."""
    import open_clip

    choice = "@" + ", @".join([*tags, "random", "path/file.safetensors"])
    if request.weights is None:
        raise WeightsError(f"open_clip/{name} needs weights: type {choice}")
    if isinstance(request.weights, Tag):
        if request.weights.name not in tags:
            raise WeightsError(f"open_clip/{name} has no weights {request.weights.name!r}; type {choice}")
        return dict(open_clip.get_pretrained_cfg(name, request.weights.name))
    return dict(open_clip.get_pretrained_cfg(name, tags[0])) if tags else {}


def _visual(config: dict[str, Any], settings: dict[str, Any], size: int | None, quick_gelu: bool) -> nn.Module:
    import open_clip

    known = {field.name for field in dataclasses.fields(open_clip.CLIPVisionCfg)}
    if "timm_model_name" in config["vision_cfg"]:
        known = {name for name in known if name.startswith("timm_")} | {"image_size"}
    check_settings("this visual tower of open_clip", settings, known)
    vision = config["vision_cfg"] | settings | {"timm_model_pretrained": False, "output_tokens": False}
    if size is not None:
        vision["image_size"] = size
    clip = open_clip.CLIP(config["embed_dim"], vision, _NO_TEXT, quick_gelu=quick_gelu)
    visual: nn.Module = clip.visual
    return visual


def _file(weights: dict[str, Any], name: str) -> Path:
    instead = f"{name}@random or {name}@path/file.safetensors"
    if weights.get("hf_hub"):
        # "org/repository/" with open_clip's usual file, or "org/repository/file".
        repo, filename = posixpath.split(weights["hf_hub"])
        safe = posixpath.splitext(filename)[0] + ".safetensors"
        return hugging_face_file(repo, (safe, filename) if filename else _FILES, instead)
    return torch_hub_file(weights["url"], instead)


def _load(visual: nn.Module, path: Path) -> None:
    """Load the visual tower's part of a checkpoint, whatever of open_clip's formats it is in."""
    from open_clip.convert import convert_state_dict

    whole = nn.Module()
    whole.visual = visual
    state: dict[str, Tensor] = convert_state_dict(whole, read_state(path))
    tower = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    fit(visual, tower or state, str(path))


def _preprocessing(visual: nn.Module, weights: dict[str, Any]) -> Preprocessing:
    """Take open_clip's own evaluation transform, its normalisation left out."""
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    merged = merge_preprocess_dict(PreprocessCfg(), weights) | {"size": visual.image_size}
    config = PreprocessCfg(**merged)
    _, height, width = config.input_size
    plain = PreprocessCfg(**(merged | {"mean": ZEROS, "std": ONES}))
    return Preprocessing(
        image_transform_v2(plain, is_train=False),
        (3, height, width),
        f"open_clip's resize by the {config.resize_mode} edge, {config.interpolation}, to {height}x{width}",
        tuple(config.mean),
        tuple(config.std),
    )
