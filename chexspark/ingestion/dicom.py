"""DICOM files to gray values. Pure functions; runs in Spark tasks.

In: the bytes of a ``.dcm``. Out: uint8 (height, width), bright where the X-ray was absorbed.
"""

import io

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut, apply_voi_lut

DARK_IS_HIGH = "MONOCHROME1"
GRAY = ("MONOCHROME1", "MONOCHROME2")


def dicom_header(content: bytes) -> pydicom.Dataset:
    """Parse the header. Raises ValueError when the bytes are no DICOM image of one gray frame."""
    try:
        header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
    except (pydicom.errors.InvalidDicomError, EOFError) as error:
        raise ValueError("not a DICOM file") from error
    photometric = header.get("PhotometricInterpretation")
    if photometric not in GRAY:
        raise ValueError(f"DICOM of photometric interpretation {photometric}")
    if int(header.get("NumberOfFrames") or 1) != 1:
        raise ValueError(f"DICOM of {header.NumberOfFrames} frames")
    return header


def dicom_pixels(content: bytes) -> np.ndarray:
    """Gray values after rescale slope and intercept, then window, then MONOCHROME1 inverted.

    Returns uint8 (height, width). Where no window is given, the range of the values is. Source: DICOM PS3.3, C.11.1 and C.11.2.
    Raises ValueError when the pixels cannot be had.
    """
    dataset = pydicom.dcmread(io.BytesIO(content))
    try:
        raw = dataset.pixel_array
    except (AttributeError, RuntimeError, NotImplementedError, EOFError) as error:
        raise ValueError(str(error).splitlines()[0]) from error
    values = apply_voi_lut(apply_modality_lut(raw, dataset), dataset).astype(np.float64)
    low, high = values.min(), values.max()
    if "WindowCenter" in dataset or "VOILUTSequence" in dataset:
        low, high = window_range(dataset, low, high)
    scaled = np.clip((values - low) * (255 / (high - low)), 0, 255) if high > low else values * 0
    gray = np.round(scaled).astype(np.uint8)
    return 255 - gray if dataset.PhotometricInterpretation == DARK_IS_HIGH else gray


def window_range(dataset: pydicom.Dataset, low: float, high: float) -> tuple[float, float]:
    """The range that `apply_voi_lut` maps a window to: that of the rescaled stored values.

    So an image that does not fill its window stays as dark or bright as the window makes it.
    """
    if "VOILUTSequence" in dataset:
        return low, high
    signed = int(dataset.get("PixelRepresentation", 0))
    bits = int(dataset.BitsStored)
    first, last = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = (
        float(dataset.get("RescaleSlope", 1)),
        float(dataset.get("RescaleIntercept", 0)),
    )
    ends = sorted((first * slope + intercept, last * slope + intercept))
    return ends[0], ends[1]
