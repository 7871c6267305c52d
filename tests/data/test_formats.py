import gzip
import io
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from fedleak.data.formats import format_of, known_format


def packed(kind):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("a", b"x")
    elif kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("a"))
    else:
        np.save(buffer, np.zeros(3))
    return buffer.getvalue()


NIFTI = struct.pack("<i", 348) + bytes(340) + b"n+1\0"
KNOWN = {
    "a.h5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5; save its arrays by h5py and numpy.save"),
    "a.dcm": (bytes(128) + b"DICM", "DICOM; convert by pydicom"),
    "a.nii": (NIFTI, "NIfTI; convert slices by nibabel"),
    "a.nii.gz": (gzip.compress(NIFTI), "gzip; unpack it with gunzip"),
    "a.tfrecord-00000-of-00001": (struct.pack("<QI", 7, 1) + b"example", "TFRecord; write its images"),
    "data.mdb": (bytes(16) + b"\xde\xc0\xef\xbe", "LMDB; read it by lmdb"),
    "a.zip": (packed("zip"), "a zip archive; unpack it with unzip"),
    "a.tar": (packed("tar"), "a tar archive; data.source = 'webdataset'"),
    "a.npy": (packed("npy"), "a NumPy array; data.source = 'npy'"),
    "a.mat": (b"MATLAB 5.0 MAT-file, Platform: posix", "a MATLAB file; save its arrays by scipy.io.loadmat"),
    "a.pkl": (b"\x80\x04\x95", "a pickle, which is never run; save its arrays by numpy.save"),
    "a.csv": (b"label,pixel1\n3,0\n", "a table in text; save its pixels and labels by numpy.loadtxt"),
    "a.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself; fetch it: git lfs pull"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_format_is_told_by_its_first_bytes_or_its_name(tmp_path, name):
    content, expected = KNOWN[name]
    (tmp_path / name).write_bytes(content)
    assert expected in known_format(tmp_path / name)
    assert expected in known_format(tmp_path)
    assert known_format(tmp_path).startswith(f"{name}: it is ")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_no_image_that_is_read_is_taken_for_another_format(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, kind)
    assert format_of(buffer.getvalue()[:512]) is None
    assert format_of(b"") is None
