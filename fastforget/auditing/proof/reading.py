"""The files that ``verify`` is given: receipts, weights, samples, ids. Any of them may be damaged, or made to do harm."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ... import _safetensors as safetensors_io
from ..._arrays import BadArray, describe, first_line, load_npz, zip_entries
from ..._files import BadFile, read_whole, size_of, strict_json
from .finding import Unreadable
from .receipt import FORMAT
from .texts import Samples, Texts

WANTED = "accepted is torch.save(model.state_dict(), …)"
# Under which name a checkpoint holds the weights, the likeliest first.
USUAL = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "parameters")
# What a folder of save_pretrained holds, the likeliest first: an index of several files, or one.
INDEX = ".index.json"
SAVED = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
FILES = (".safetensors", ".bin", ".pt", ".pth")
LARGEST_RECEIPT, LARGEST_IDS, LARGEST_INDEX = 64 << 20, 1 << 30, 64 << 20  # bytes
SHARED = 16  # how many times the bytes of a file its tensors may claim: some share their memory, none is spread out by far
DEEPEST, MOST_ENTRIES = 40, 1_000_000


def load_receipt(path: str | Path) -> dict[str, Any]:
    """A receipt from its file.

    Raises:
        Unreadable: missing, cut off, not a receipt, or JSON that could be read in two ways.
    """
    try:
        receipt = strict_json(_content(path, LARGEST_RECEIPT))
    except ValueError as error:
        reason = f"not whole, or not JSON ({first_line(error)}); a receipt is written by report.write_receipt(...)"
        raise Unreadable(f"{path}: {reason}") from error
    if not isinstance(receipt, dict) or not str(receipt.get("format", "")).startswith("fastforget receipt"):
        raise Unreadable(f"{path}: not a fastforget receipt")
    if receipt["format"] != FORMAT:
        raise Unreadable(f"{path}: its format is {str(receipt['format'])[:40]!r}; this version reads {FORMAT!r}")
    return receipt


def load_ids(path: str | Path) -> list[str]:
    """Ids, one a line.

    Raises:
        Unreadable: missing, no text in UTF-8, or an empty line among them.
    """
    try:
        text = _content(path, LARGEST_IDS).decode("utf-8")
    except ValueError as error:
        raise Unreadable(f"{path}: not text in UTF-8 ({error})") from error
    lines = text.removesuffix("\n").split("\n") if text else []
    return [line.removesuffix("\r") for line in lines]


def _content(path: str | Path, most: int) -> bytes:
    try:
        return read_whole(path, most)
    except BadFile as error:
        raise Unreadable(str(error)) from error


# ------------------------------------------------------------------ weights


def load_weights(path: str | Path, key: str | None = None) -> dict[str, Any]:
    """A state_dict from .pt, .pth or .bin (torch.save, weights only), .safetensors, several of these by their index, or a folder with them.

    Args:
        path: the file. What it holds is a state_dict, or has one inside. Of a folder, as ``save_pretrained`` writes it: the index or the
            one file of weights in it.
        key: where, such as "net" or "models.student"; without it the only one is taken, or that under a usual name.

    Raises:
        Unreadable: missing, cut off, no state_dict, or several.
    """
    if os.path.isdir(path):
        path = _in_folder(Path(path))
    if str(path).endswith(INDEX):
        return _sharded(Path(path))
    try:
        size = size_of(path)
    except BadFile as error:
        reason = str(error) if os.path.exists(path) else f"{path}: no such file"
        raise Unreadable(reason) from error
    if Path(path).suffix == ".safetensors":
        return dict(_safetensors(path))
    _refuse_packed(Path(path), size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about a pickle's protocol: what it makes of it is what counts
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of a reader that is not ours
        raise Unreadable(f"{path}: can't be read as weights ({_why(error)}); {WANTED}") from error
    tensors = list(_tensors(path, loaded))
    if sum(one.numel() * one.element_size() for one in tensors) > SHARED * size + (64 << 20):
        raise Unreadable(f"{path}: its tensors claim more bytes than a file of {size} bytes can hold; {WANTED}")
    if not isinstance(loaded, Mapping):
        raise Unreadable(f"{path}: holds a {type(loaded).__name__}; {WANTED}")
    return dict(_chosen(path, loaded, key))


def _in_folder(folder: Path) -> Path:
    """The file of a folder that its weights are read from."""
    held = sorted(one.name for one in folder.iterdir())
    usual = next((name for name in SAVED if name in held), None)
    if usual is not None:
        return folder / usual
    found = [name for name in held if name.endswith(INDEX)] or [name for name in held if name.endswith(FILES)]
    if len(found) == 1:
        return folder / found[0]
    none = f"no weights; accepted is a folder with {' or '.join(SAVED)}"
    raise Unreadable(f"{folder}: a folder that holds {f'several files of weights, {describe(found)}; say which' if found else none}")


def _sharded(index: Path) -> dict[str, Any]:
    """All that an index names, each from its file beside it, and nothing else."""
    try:
        told = strict_json(_content(index, LARGEST_INDEX))
    except ValueError as error:
        raise Unreadable(f"{index}: not whole, or not JSON ({first_line(error)})") from error
    places = told.get("weight_map") if isinstance(told, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(one, str) for one in places.values()):
        raise Unreadable(f"{index}: has no entry \"weight_map\" of names and files; accepted is an index as save_pretrained writes it")
    whole: dict[str, Any] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file or file.endswith(INDEX):
            raise Unreadable(f"{index}: names the file {file!r}; accepted are files of weights beside it")
        part, wanted = load_weights(index.parent / file), {name for name, place in places.items() if place == file}
        if set(part) != wanted:
            name = min(set(part) ^ wanted)
            raise Unreadable(f"{index}: {name!r} is {'not in' if name in wanted else 'in'} {file}, but the index says otherwise")
        whole |= part
    return whole


def _safetensors(path: str | Path) -> dict[str, Tensor]:
    try:
        return safetensors_io.load(path)[0]
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path}: can't be read ({first_line(error)})") from error


def _why(error: Exception) -> str:
    """torch's message in our words, since its own advises to read the file with ``weights_only=False``, which runs the code in it."""
    said = str(error)
    if not said.startswith("Weights only load failed"):
        return first_line(error)
    if found := re.search(r"GLOBAL ([\w.]+) was not an allowed global", said):
        return f"it holds an object of {found[1]}, and to read that would run code: a whole model, by torch.save(model, …)?"
    return "it is none of torch.save's files, or damaged"


def _refuse_packed(path: Path, size: int) -> None:
    """Torch stores tensors as they are. An archive that unpacks to more than it has bytes was not written by it."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:
        raise Unreadable(f"{path}: can't be read as weights ({first_line(error)}); {WANTED}") from error
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise Unreadable(f"{path}: its archive holds an entry twice; {WANTED}")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(entry.file_size for entry in entries) > size:
        raise Unreadable(f"{path}: its archive unpacks to more than it holds; {WANTED}")


def _tensors(path: str | Path, loaded: Any) -> Iterator[Tensor]:
    """All tensors, whatever they are nested in."""
    left, seen = [(loaded, 0)], 0
    while left:
        value, depth = left.pop()
        seen += 1
        if depth > DEEPEST or seen > MOST_ENTRIES:
            raise Unreadable(f"{path}: what it holds is nested too deep, or has more than {MOST_ENTRIES} entries; {WANTED}")
        if isinstance(value, Tensor):
            if value.is_meta:
                raise Unreadable(f"{path}: holds a tensor on the meta device, which has no numbers; {WANTED}")
            yield value
        elif isinstance(value, Mapping):
            left += [(one, depth + 1) for one in value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            left += [(one, depth + 1) for one in value]


def _chosen(path: str | Path, loaded: Mapping[Any, Any], key: str | None) -> Mapping[str, Any]:
    """The one state_dict in a checkpoint."""
    states = dict(_states(loaded))
    if key is not None:
        if key not in states:
            raise Unreadable(f"{path}: --key {key!r} names no weights; accepted are {describe(states) if states else 'none'}")
        return states[key]
    inside = {name: state for name, state in states.items() if name}
    if not inside:
        if "" not in states:
            raise Unreadable(f"{path}: holds a {type(loaded).__name__} without tensors; {WANTED}")
        return states[""]
    if len(inside) == 1:
        return next(iter(inside.values()))
    for name in USUAL:
        if name in inside:
            return inside[name]
    raise Unreadable(f"{path}: holds several weights; say whose they are by --key, one of {describe(inside)}")


def _states(value: Mapping[Any, Any], name: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Everything that could be a state_dict, by its place; an optimiser's state is none."""
    if depth > 3 or not all(isinstance(key, str) for key in value) or "param_groups" in value:
        return
    if any(_holds_weights(one) for one in value.values()):
        yield name, value
    for key, one in value.items():
        if isinstance(one, Mapping) and not key.endswith("_extra_state"):
            yield from _states(one, f"{name}.{key}".lstrip("."), depth + 1)


def _holds_weights(value: Any) -> bool:
    """A tensor, or a quantised layer's pair of them."""
    return isinstance(value, Tensor) or (isinstance(value, tuple) and any(isinstance(part, Tensor) for part in value))


# ------------------------------------------------------------------ samples, and the way to build a model


TEXTS = ("input_ids", "labels", "attention_mask")


def load_samples(path: str | Path) -> Samples:
    """(inputs, labels) from an .npz with "inputs" and "labels" (or "x" and "y"); labels are [N], or [N, T] of sequences. Or padded texts of
    "input_ids", "attention_mask" and "labels".

    Raises:
        Unreadable: missing, cut off, without these arrays, or arrays that don't fit together.
    """
    place = Path(path)
    try:
        held = zip_entries(place)
        names = next((one for one in (("inputs", "labels"), ("x", "y"), TEXTS) if all(name in held for name in one)), None)
        if names is None:
            accepted = f'arrays "inputs" and "labels" (of texts also {", ".join(TEXTS)}), as they were audited'
            raise Unreadable(f"{path}: holds {describe(held)}; accepted are {accepted}")
        arrays = load_npz(place, names)
        inputs, labels, *masks = (torch.from_numpy(arrays[name]) for name in names)
    except (BadArray, TypeError) as error:
        raise Unreadable(f"{path}: can't be read as .npz ({first_line(error)})") from error
    if labels.dim() not in (1, 2) or inputs.dim() < 1 or len(inputs) != len(labels) or len(labels) == 0:
        raise Unreadable(
            f"{path}: {names[0]} has the shape {list(inputs.shape)} and {names[1]} {list(labels.shape)}; accepted are as many labels [N] "
            "(of sequences [N, T]) as inputs, at least one"
        )
    wide = labels.double()
    if not bool((torch.isfinite(wide) & (wide == wide.round()) & (wide.abs() < 2**53)).all()):
        raise Unreadable(f"{path}: {names[1]} holds other numbers than class or token ids")
    if not masks:
        return inputs, labels.long()
    if inputs.dim() != 2 or not inputs.shape == labels.shape == masks[0].shape:
        raise Unreadable(f"{path}: {', '.join(TEXTS)} are of other shapes; accepted are [N, T] each")
    return Texts(inputs, labels.long(), masks[0])


def builder(name: str) -> Callable[[], nn.Module]:
    """A function without arguments that makes a model, from "module:function" or "file.py:function". It runs the caller's own code.

    Raises:
        Unreadable: no such module or function, or importing it fails.
    """
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise Unreadable(f"--build: got {name!r}; accepted is MODULE:FUNCTION or FILE.py:FUNCTION, a function that returns the model")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location("fastforget_built", place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            if os.getcwd() not in sys.path:
                sys.path.insert(0, os.getcwd())
            module = importlib.import_module(place)
        made = getattr(module, function)
    except Exception as error:  # the caller's module may fail in any way
        raise Unreadable(f"--build: {name} can't be imported ({type(error).__name__}: {first_line(error)})") from error
    if not callable(made):
        raise Unreadable(f"--build: {name} is a {type(made).__name__}; accepted is a function that returns the model")
    return made
