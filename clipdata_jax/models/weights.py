"""CLIP's parameters from and to transformers' `model.safetensors`, by one table read both ways."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from clipdata_jax.errors import InputError
from clipdata_jax.models.clip import CLIP
from clipdata_jax.models.clip_config import CLIPConfig
from clipdata_jax.models.files import CONFIG, WEIGHTS, replace_file, write_json
from clipdata_jax.models.image_transform import ImageTransform, write_preprocessor_config


class Rule(NamedTuple):
    """One row of the table: a regex on tensors' names, our path (None: unread), the transpose on loading."""

    source: str
    target: str | None
    transpose: tuple[int, ...] | None = None


_LAYER, _OUR_LAYER = r"(text|vision)_model\.encoder\.layers\.(\d+)\.", r"\1.layers.\2."
# PyTorch's dense weights are (out, in), its patches (out, in, height, width); "pre_layrnorm" is theirs.
# Groups must not be nested: `source_name` turns the table round by swapping groups and back references.
CLIP_TABLE = (
    Rule(_LAYER + r"self_attn\.(q|k|v|out)_proj\.weight", _OUR_LAYER + r"attention.\3.kernel", (1, 0)),
    Rule(_LAYER + r"self_attn\.(q|k|v|out)_proj\.bias", _OUR_LAYER + r"attention.\3.bias"),
    Rule(_LAYER + r"mlp\.fc(1|2)\.weight", _OUR_LAYER + r"mlp.fc\3.kernel", (1, 0)),
    Rule(_LAYER + r"mlp\.fc(1|2)\.bias", _OUR_LAYER + r"mlp.fc\3.bias"),
    Rule(_LAYER + r"layer_norm(1|2)\.weight", _OUR_LAYER + r"norm\3.scale"),
    Rule(_LAYER + r"layer_norm(1|2)\.bias", _OUR_LAYER + r"norm\3.bias"),
    Rule(r"text_model\.embeddings\.token_embedding\.weight", "text.token"),
    Rule(r"(text|vision)_model\.embeddings\.position_embedding\.weight", r"\1.position"),
    Rule(r"vision_model\.embeddings\.class_embedding", "vision.class_embedding"),
    Rule(r"vision_model\.embeddings\.patch_embedding\.weight", "vision.patch_kernel", (2, 3, 1, 0)),
    Rule(r"vision_model\.pre_layrnorm\.weight", "vision.pre_norm.scale"),
    Rule(r"vision_model\.pre_layrnorm\.bias", "vision.pre_norm.bias"),
    Rule(r"vision_model\.post_layernorm\.weight", "vision.post_norm.scale"),
    Rule(r"vision_model\.post_layernorm\.bias", "vision.post_norm.bias"),
    Rule(r"text_model\.final_layer_norm\.weight", "text.post_norm.scale"),
    Rule(r"text_model\.final_layer_norm\.bias", "text.post_norm.bias"),
    Rule(r"visual_projection\.weight", "vision.projection.kernel", (1, 0)),
    Rule(r"text_projection\.weight", "text.projection.kernel", (1, 0)),
    Rule(r"logit_scale", "logit_scale"),
    Rule(r"(?:text|vision)_model\.embeddings\.position_ids", None),  # 0, 1, 2, ...: a buffer of older files
)


def load_weights(
    file: Path,
    config: CLIPConfig,
    *,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    table: tuple[Rule, ...] = CLIP_TABLE,
) -> CLIP:
    """Makes a CLIP of a safetensors file, tensor by tensor: the file is mapped, never read as a whole.

    Args:
      file: a safetensors file with transformers' names.
      config: the shape the tensors must have.
      dtype: what the towers compute in.
      param_dtype: what the parameters are kept in.
      table: which tensor goes where.

    Returns:
      The model, its parameters on the default device.

    Raises:
      InputError: the file is no safetensors file, a tensor has another shape, or (one error that lists all)
        tensors are left over or parameters not filled.
    """
    from safetensors import SafetensorError, safe_open

    model = nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype))
    structure, empty = nnx.split(model)
    filled = []
    try:
        with safe_open(file, framework="numpy") as tensors:
            targets = {_dotted(path) for path, _ in nnx.to_flat_state(empty)}
            sources = _match(file, list(tensors.keys()), targets, table)
            for path, variable in nnx.to_flat_state(empty):
                name, transpose = sources[_dotted(path)]
                array = _oriented(file, name, tensors.get_tensor(name), transpose, variable.shape)
                filled.append((path, variable.replace(jnp.asarray(array.astype(variable.dtype)))))
    except SafetensorError as error:
        raise InputError(f"{file} is no readable safetensors file ({error}); copy it again") from error
    return nnx.merge(structure, nnx.from_flat_state(filled))


def save_clip(model: CLIP, folder: str | Path, *, dtype: Literal["float32", "float16"] = "float32") -> None:
    """Writes a model in transformers' layout, so that `load_clip` and transformers read it.

    Writes `model.safetensors`, `preprocessor_config.json` and, last, `config.json`, each whole or not at all.
    The tokenizer is not the model's to write: put its files into the same folder.

    Args:
      model: the model to write.
      folder: made if missing; files of these names are replaced.
      dtype: what the file holds; float32 keeps float32 and bfloat16 parameters exactly.

    Raises:
      ValueError: another dtype, or a parameter that is not finite in it.
    """
    from safetensors.numpy import save_file

    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype is {dtype!r}, expected 'float32' or 'float16'")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config, tensors = model.config, dict(_tensors(model, np.dtype(dtype)))
    with replace_file(folder / WEIGHTS) as aside:
        save_file(tensors, aside, metadata={"format": "pt"})  # transformers asks for this key
    write_preprocessor_config(
        folder,
        ImageTransform(size=config.vision.image_size),
        image_mean=config.image_mean,
        image_std=config.image_std,
    )
    write_json(folder / CONFIG, {**config.to_transformers(), "dtype": dtype})


def source_name(target: str, table: tuple[Rule, ...] = CLIP_TABLE) -> tuple[str, tuple[int, ...] | None]:
    """The file's name of one of our parameters, and the transpose on the way in.

    Args:
      target: our path, e.g. "text.layers.0.mlp.fc1.kernel".
      table: which tensor goes where.

    Raises:
      ValueError: the table has no such parameter.
    """
    for source, ours, transpose in table:
        if ours is None:
            continue
        groups = re.findall(r"\([^()]*\)", source)
        pattern, name = ours.replace(".", r"\."), source.replace(r"\.", ".")
        for index, group in enumerate(groups, start=1):
            pattern = pattern.replace(f"\\{index}", group)
            name = name.replace(group, f"\\{index}", 1)
        if match := re.fullmatch(pattern, target):
            return match.expand(name), transpose
    raise ValueError(f"the weight table has no parameter {target!r}")


def _match(
    file: Path, names: list[str], targets: set[str], table: tuple[Rule, ...]
) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    """Our path -> (tensor, transpose) for all targets, or one error listing what is left over and missing."""
    sources: dict[str, tuple[str, tuple[int, ...] | None]] = {}
    left_over = []
    for name in names:
        rule = next((rule for rule in table if re.fullmatch(rule.source, name)), None)
        target = rule and rule.target and re.sub(rule.source, rule.target, name)
        if rule is not None and target in targets:
            sources[target] = name, rule.transpose
        elif rule is None or rule.target is not None:
            left_over.append(name)
    missing = [source_name(target, table)[0] for target in targets - set(sources)]
    if left_over or missing:
        raise InputError(
            f"{file} does not fit its config.json: tensors left over: {_listed(left_over)}; "
            f"tensors missing: {_listed(missing)}; check that both files are of the same model"
        )
    return sources


def _oriented(
    file: Path, name: str, array: np.ndarray, transpose: tuple[int, ...] | None, shape: tuple[int, ...]
) -> np.ndarray:
    """The tensor with our axes, after checking its shape and that it holds floats."""
    # The model's shape in the file's order of axes, for the message too.
    wanted = tuple(shape[transpose.index(axis)] for axis in range(len(shape))) if transpose else shape
    if array.shape != wanted:
        raise InputError(
            f"tensor {name} of {file} has shape {array.shape}, but config.json asks for {wanted}: "
            f"check that both files are of the same model"
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(
            f"tensor {name} of {file} holds {array.dtype}, expected floats: take the unquantised file"
        )
    return array if transpose is None else array.transpose(transpose)


def _tensors(model: CLIP, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Each parameter as transformers names and orients it."""
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        name, transpose = source_name(_dotted(path))
        with np.errstate(over="ignore"):  # what overflows is refused below
            array = np.asarray(jax.device_get(variable[...])).astype(dtype)
        if not np.isfinite(array).all():
            raise ValueError(f"{_dotted(path)} is not finite in {dtype}: train again, or take float32")
        if transpose is not None:
            array = array.transpose(np.argsort(transpose))
        yield (
            name,
            np.array(array, order="C"),
        )  # safetensors writes the buffer as it lies, whatever the strides


def _dotted(path: tuple[object, ...]) -> str:
    return ".".join(map(str, path))


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)) or "none"
