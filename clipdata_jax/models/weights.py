"""Reading parameters from safetensors files and writing them, by one table for both."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from clipdata_jax.errors import InputError
from clipdata_jax.models.checkpoint_files import (
    CONFIG,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    WEIGHTS,
    replace_file,
    write_json,
)
from clipdata_jax.models.checkpoint_layout import Convention
from clipdata_jax.models.clip import CLIP
from clipdata_jax.models.clip_config import CLIPConfig
from clipdata_jax.models.image_settings import write_preprocessor_config
from clipdata_jax.models.image_transform import ImageTransform
from clipdata_jax.models.open_clip_config import config_to_open_clip
from clipdata_jax.models.transformers_config import config_to_transformers, is_siglip
from clipdata_jax.models.weight_tables import (
    CLIP_TABLE,
    SIGLIP_TABLE,
    TensorRule,
    WeightTable,
    open_clip_table,
    source_name,
)

# The names that safetensors has for what can be read. float8 weights come with scales that no table here has.
_DTYPES = ("F64", "F32", "F16", "BF16")
_CONVERTERS: dict[Convention, Callable[[CLIPConfig], dict[str, Any]]] = {
    "transformers": config_to_transformers,
    "open_clip": config_to_open_clip,
}


class _OneKey(nnx.Rngs):
    """The same key for all parameters, for their shapes alone: to trace a counter takes seconds for a large model."""

    def __init__(self) -> None:
        self._key = jax.random.key(0)

    def params(self) -> Array:
        return self._key


def load_weights(
    files: Sequence[Path],
    config: CLIPConfig,
    *,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    table: WeightTable,
    config_name: str,
    prefix: str = "",
    sharding: jax.sharding.Sharding | None = None,
) -> CLIP:
    """Loads a model from memory-mapped safetensors files, tensor by tensor.

    The host holds one tensor at a time, besides the parameters if the devices are the host's.

    Args:
      files: the files of the weights; files with another suffix (an index) are ignored.
      config: the model's shape.
      dtype: compute dtype of the towers.
      param_dtype: dtype of the parameters.
      table: the format's table.
      config_name: the file of the shape, for messages.
      prefix: of the table's names, which files of one tower may leave out.
      sharding: of each parameter; default: one device.

    Returns:
      The model, its parameters where `sharding` puts them.

    Raises:
      InputError: a file is not a safetensors file, a tensor has another shape, or tensors are left over or
        missing (one error lists all).
    """
    model = nnx.eval_shape(lambda: CLIP(config, rngs=_OneKey(), dtype=dtype, param_dtype=param_dtype))
    structure, empty = nnx.split(model)
    with contextlib.ExitStack() as stack:
        opened = {file: _open(file, stack) for file in files if file.suffix == ".safetensors"}
        names = {
            name if name.startswith((prefix, "visual_", "text_")) else prefix + name: (file, name)
            for file, tensors in opened.items()
            for name in list(tensors.keys())
        }
        misfit = f"{files[0] if len(opened) == 1 else files[0].parent} does not fit its {config_name}"
        sources = _match(misfit, names, {_dotted(path) for path, _ in nnx.to_flat_state(empty)}, table)
        state = []
        for path, variable in nnx.to_flat_state(empty):
            known, rule = sources[_dotted(path)]
            file, name = names[known]
            array = _read(file, opened[file], name, rule, variable.shape, config_name)
            state.append((path, variable.replace(_put(array, variable.dtype, sharding))))
    return nnx.merge(structure, nnx.from_flat_state(state))


def save_clip(
    model: CLIP,
    folder: str | Path,
    *,
    layout: Convention = "transformers",
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Writes a model in transformers' or in open_clip's layout, which `load_clip` and these libraries read.

    Writes the weights, `preprocessor_config.json` (transformers) and, last, the config file, each atomically. The
    tokenizer is not part of the model: copy its files into the same folder, which may hold both layouts.

    Args:
      model: the model to write.
      folder: created if missing; files of these names are replaced.
      layout: "transformers": `model.safetensors` and `config.json`; "open_clip": `open_clip_model.safetensors` and
        `open_clip_config.json`.
      dtype: of the tensors in the file; float32 keeps float32 and bfloat16 parameters exactly.

    Raises:
      ValueError: another dtype, a parameter that is not finite in it, or a model that the library doesn't have.

    >>> from importlib.resources import files
    >>> from clipdata_jax import load_clip, save_clip
    >>> folder = files("clipdata_jax") / "demo" / "model"
    >>> save_clip(load_clip(folder), "copy", dtype="float16")
    >>> load_clip("copy").config == load_clip(folder).config
    True
    """
    from safetensors.numpy import save_file

    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype is {dtype!r}, expected 'float32' or 'float16'")
    config, siglip, folder = model.config, is_siglip(model.config), Path(folder)
    if layout == "open_clip":
        content = config_to_open_clip(config)
        table = open_clip_table(projection_bias=config.text is not None and config.text.projection_bias)
        config_name, weights = OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS
    else:
        content, table = {**config_to_transformers(config), "dtype": dtype}, SIGLIP_TABLE if siglip else CLIP_TABLE
        config_name, weights = CONFIG, WEIGHTS
    tensors = dict(_tensors(model, np.dtype(dtype), table))
    folder.mkdir(parents=True, exist_ok=True)
    with replace_file(folder / weights) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})  # transformers requires this key
    if layout == "transformers":
        write_preprocessor_config(
            folder,
            ImageTransform(size=config.image_size, fit="squash" if siglip else "crop"),
            image_mean=config.image_mean,
            image_std=config.image_std,
        )
    write_json(folder / config_name, content)


def layouts_of(config: CLIPConfig) -> list[Convention]:
    """The layouts that can hold a model of this shape, in which `save_clip` writes it.

    A CLIP with the bias of SigLIP's loss is none of transformers'; of SigLIP's own towers open_clip has only some.

    Args:
      config: the shape.

    Returns:
      "transformers", "open_clip" or both.

    >>> from clipdata_jax.models import VIT_B_32, layouts_of
    >>> layouts_of(VIT_B_32)
    ['transformers', 'open_clip']
    """
    found: list[Convention] = []
    for layout, convert in _CONVERTERS.items():
        with contextlib.suppress(ValueError):
            convert(config)
            found.append(layout)
    return found


def _put(array: np.ndarray, dtype: DTypeLike, sharding: jax.sharding.Sharding | None) -> Array:
    # Waiting frees the copy on the host before the next tensor is read.
    return jax.block_until_ready(jax.device_put(array.astype(dtype, copy=False), sharding))


def _open(file: Path, stack: contextlib.ExitStack) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return stack.enter_context(safe_open(file, framework="numpy"))
    except SafetensorError as error:
        raise InputError(f"{file} is not a readable safetensors file ({error}); copy it again") from error


def _match(
    misfit: str, names: Iterable[str], targets: set[str], table: WeightTable
) -> dict[str, tuple[str, TensorRule]]:
    """Maps our paths to (tensor, row of the table), or raises one error that lists what is left over and missing."""
    sources: dict[str, tuple[str, TensorRule]] = {}
    left_over = []
    for name in names:
        rules = [rule for rule in table if re.fullmatch(rule.source, name)]
        found = {re.sub(rule.source, rule.target, name): (name, rule) for rule in rules if rule.target}
        sources.update({target: source for target, source in found.items() if target in targets})
        unread = any(rule.target is None for rule in rules)
        if not unread and not targets.intersection(found):
            left_over.append(name)
    missing = {source_name(target, table)[0] for target in targets - set(sources)}
    if left_over or missing:
        raise InputError(
            f"{misfit}: tensors left over: {_listed(left_over)}; "
            f"tensors missing: {_listed(missing)}; check that both files are of the same model"
        )
    return sources


def _read(
    file: Path, tensors: Any, name: str, rule: TensorRule, shape: tuple[int, ...], config_name: str
) -> np.ndarray:
    """Reads a tensor, or the rule's part of it, with our axes, and checks shape and dtype."""
    about = f"tensor {name} of {file}"
    # In the file's order of axes, also for the message.
    wanted = tuple(shape[rule.transpose.index(axis)] for axis in range(len(shape))) if rule.transpose else shape
    if rule.parts > 1:
        wanted = (rule.parts * wanted[0], *wanted[1:])
    stored = tensors.get_slice(name)
    if (dtype := stored.get_dtype()) not in _DTYPES:
        raise InputError(f"{about} has dtype {dtype}, expected one of {', '.join(_DTYPES)}; take the unquantised file")
    found = tuple(stored.get_shape())
    # SigLIP's and some of open_clip's logit scales are vectors of length 1, timm's positions a batch of one.
    if found not in (wanted, (1, *wanted)):
        raise InputError(
            f"{about} has shape {found}, but {config_name} needs {wanted}; check that both files are of the same model"
        )
    if rule.parts == 1:
        array = tensors.get_tensor(name)
    else:
        rows = wanted[0] // rule.parts
        array = stored[rule.part * rows : (rule.part + 1) * rows]
    return array.reshape(shape) if rule.transpose is None else array.transpose(rule.transpose)


def _tensors(model: CLIP, dtype: np.dtype, table: WeightTable) -> Iterator[tuple[str, np.ndarray]]:
    """Yields all tensors with transformers' names and orientations."""
    fused: dict[str, dict[int, np.ndarray]] = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        name, rule = source_name(_dotted(path), table)
        with np.errstate(over="ignore"):  # raised below
            array = np.asarray(jax.device_get(variable[...])).astype(dtype)
        if not np.isfinite(array).all():
            raise ValueError(f"{_dotted(path)} is not finite in {dtype}; train again, or take float32")
        if rule.transpose is not None:
            array = array.transpose(np.argsort(rule.transpose))
        if array.ndim == 0 and table is SIGLIP_TABLE:
            array = array.reshape(1)
        if rule.parts > 1:
            parts = fused.setdefault(name, {})
            parts[rule.part] = array
            if len(parts) < rule.parts:
                continue
            array = np.concatenate([parts[part] for part in range(rule.parts)])
        # safetensors writes the buffer and ignores strides.
        yield name, np.array(array, order="C")


def _dotted(path: tuple[object, ...]) -> str:
    return ".".join(map(str, path))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
