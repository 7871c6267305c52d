"""What a file is by its first bytes, and how it is brought into a form that a source reads."""

from __future__ import annotations

from pathlib import Path
from typing import Final

START: Final = 512
"""How many bytes of a file tell its format."""

_TO_NPY: Final = "data.source = 'npy' reads train_images.npy and train_labels.npy"
_TO_PNG: Final = "8- or 16-bit PNGs in class folders for data.source = 'imagefolder'"

# At which byte, which bytes, what it is, and what to do.
_KNOWN: Final[tuple[tuple[int, bytes, str, str], ...]] = (
    (0, b"\x89HDF\r\n\x1a\n", "HDF5", f"save its arrays by h5py and numpy.save: {_TO_NPY}"),
    (0, b"MATLAB 5.0 MAT-file", "a MATLAB file", f"save its arrays by scipy.io.loadmat and numpy.save: {_TO_NPY}"),
    (128, b"DICM", "DICOM", f"convert by pydicom (pixel_array, with the rescale slope) into {_TO_PNG}"),
    (344, b"n+1\0", "NIfTI", f"convert slices by nibabel (get_fdata) into {_TO_PNG}, or arrays: {_TO_NPY}"),
    (344, b"ni1\0", "NIfTI's header", f"convert slices by nibabel (get_fdata) into {_TO_PNG}, or arrays: {_TO_NPY}"),
    (0, b"NRRD", "NRRD", f"convert slices by pynrrd into {_TO_PNG}, or arrays: {_TO_NPY}"),
    (0, b"ObjectType =", "MetaImage", f"convert slices by SimpleITK into {_TO_PNG}, or arrays: {_TO_NPY}"),
    (
        16,
        b"\xde\xc0\xef\xbe",
        "LMDB",
        "read it by lmdb and write the encoded images with labels to Parquet, or to a webdataset tar",
    ),
    (0, b"\x0a\x23\xd7\xce", "MXNet's RecordIO", "unpack it by mxnet.recordio into image files in class folders"),
    (0, b"ARROW1", "an Arrow file", "write it as Parquet: datasets.load_dataset('arrow', ...).to_parquet('train.parquet')"),
    (0, b"SQLite format 3\0", "an SQLite database", "write its images and labels to Parquet"),
    (0, b"Obj\x01", "Avro", "write its images and labels to Parquet"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR", f"scale its floats to a known range and save as {_TO_PNG}"),
    (0, b"SIMPLE  =", "FITS", f"scale its levels to a known range (astropy.io.fits) and save as {_TO_PNG}, or arrays: {_TO_NPY}"),
    (0, b"\x93NUMPY", "a NumPy array", _TO_NPY),
    (0, b"PAR1", "Parquet", "data.source = 'parquet' reads a folder with train*.parquet"),
    (0, b"\x1f\x8b", "gzip", "unpack it with gunzip (or tar -xzf) first"),
    (0, b"BZh", "bzip2", "unpack it with bunzip2 (or tar -xjf) first"),
    (0, b"\xfd7zXZ\0", "xz", "unpack it with unxz (or tar -xJf) first"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard", "unpack it with unzstd first"),
    (0, b"7z\xbc\xaf\x27\x1c", "7-Zip", "unpack it first"),
    (0, b"Rar!\x1a\x07", "RAR", "unpack it first"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it with unzip first (if it is an .npz: data.source = 'npz')"),
    (
        257,
        b"ustar",
        "a tar archive",
        "data.source = 'webdataset' reads train*.tar of images and labels; others unpack with tar -xf",
    ),
    (4, b"ftypheic", "HEIC", "convert it to PNG or JPEG"),
    (4, b"ftyp", "a video or an image in MP4's form", "convert it to PNG or JPEG, a file an image"),
    (0, b"\xff\x0a", "JPEG XL", "convert it to PNG or JPEG"),
    (0, b"%PDF", "PDF", "convert it to PNG"),
    (0, b"<svg", "SVG", "convert it to PNG"),
    (
        0,
        b"\x80\x02",
        "a pickle, which is never run",
        "CIFAR's own batches: data.source = 'cifar-batches'; others: save by numpy.save",
    ),
    (0, b"\x80\x03", "a pickle, which is never run", f"save its arrays by numpy.save: {_TO_NPY}"),
    (0, b"\x80\x04", "a pickle, which is never run", f"save its arrays by numpy.save: {_TO_NPY}"),
    (0, b"\x80\x05", "a pickle, which is never run", f"save its arrays by numpy.save: {_TO_NPY}"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it: git lfs pull"),
    (0, b"<!DOCTYPE html", "a web page", "the download failed: fetch the file again"),
    (0, b"<html", "a web page", "the download failed: fetch the file again"),
)
# What has no bytes of its own at the start.
_NAMED: Final[tuple[tuple[str, str, str], ...]] = (
    (".tfrecord", "TFRecord", "write its images and labels to Parquet or to class folders: tfds.load(...) and PIL.Image.save"),
    (".beton", "FFCV", "write the images and labels that it was made of to Parquet or to class folders"),
    (".zarr", "Zarr", f"save its arrays by zarr and numpy.save: {_TO_NPY}"),
    (".csv", "a table in text", f"save its pixels and labels by numpy.loadtxt and numpy.save: {_TO_NPY}"),
    (".mdb", "LMDB", "read it by lmdb and write the encoded images with labels to Parquet, or to a webdataset tar"),
)


def format_of(start: bytes, name: str = "") -> str | None:
    """Return what a file is and what to do with it, or ``None`` where that is not known.

    Parameters
    ----------
    start : bytes
        Its first :data:`START` bytes, or all if there are fewer.
    name : str
        What it is called: some formats have nothing else.
    """
    for offset, magic, what, remedy in _KNOWN:
        if start[offset : offset + len(magic)] == magic:
            return f"it is {what}; {remedy}"
    for part, what, remedy in _NAMED:
        if part in name.lower():
            return f"it is {what}; {remedy}"
    return None


def known_format(path: Path) -> str | None:
    """Return what the file at ``path``, or the first known one in the folder there, is; ``None`` if that is not known."""
    if path.is_dir() and not path.name.lower().endswith(".zarr"):
        for inner in sorted(path.iterdir())[:START]:
            if not inner.name.startswith(".") and (inner.is_file() or inner.name.lower().endswith(".zarr")):
                found = known_format(inner)
                if found is not None:
                    return f"{inner.name}: {found}"
        return None
    try:
        with path.open("rb") as file:
            start = file.read(START)
    except OSError:
        start = b""
    return format_of(start, path.name)
