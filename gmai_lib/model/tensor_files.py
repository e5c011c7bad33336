"""Weight files of a checkpoint folder: which there are, and their tensors, without running code.

    for path in weight_files(folder):
        tensors = read_tensors(path)

Single files and shards with an index, safetensors and .bin, as the Hugging Face hub has them.
Paper: none.
"""

import pickle
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gmai_lib.outputs import read_json

# Name of one file, and of the index of several; the first that exists is read.
_LAYOUTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a checkpoint folder, safetensors before .bin, in order.

    Raises FileNotFoundError that names the shards an index lists and the folder lacks, or says
    which files were looked for.
    """
    folder = Path(folder)
    for single, index in _LAYOUTS:
        if (folder / index).is_file():
            names = sorted(set(read_json(folder / index)["weight_map"].values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise FileNotFoundError(
                    f"{folder / index} lists {len(names)} files, but {missing} are missing; "
                    "download them again"
                )
            return [folder / name for name in names]
        if (folder / single).is_file():
            return [folder / single]
    looked = [name for layout in _LAYOUTS for name in layout]
    raise FileNotFoundError(f"no weights in {folder}: none of {looked} is there")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read one .safetensors or .bin file, mapped into memory.

    Raises ValueError for a broken file, and for a pickle that holds more than tensors: to read
    it would run its code.
    """
    path = Path(path)
    with explained(path):
        if path.suffix == ".safetensors":
            return load_file(path)
        mapped = zipfile.is_zipfile(path)  # files of before torch 1.6 are not
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except (RuntimeError, EOFError) as error:
            raise ValueError(f"{path} is broken ({error}); download it again") from error
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise ValueError(f"{path} holds no dictionary of tensors; is it a weight file?")
    return state


@contextmanager
def explained(path: Path):
    """Turn what a hostile or broken file raises inside the block into a ValueError that says so."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was not read: its pickle holds code or objects besides tensors, and reading "
            f"would run them; use a safetensors file ({str(error).splitlines()[0]})"
        ) from error
    except SafetensorError as error:
        raise ValueError(f"{path} is broken ({error}); download it again") from error
