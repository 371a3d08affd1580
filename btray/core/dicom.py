"""DICOM files to grey pixels and to what is known of the slice, but for who the patient is.

No message here repeats a value from a file: any of them may hold a patient's name.
"""

import io
import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from btray.core.images import MAX_PIXELS, ImageError, window

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PERCENTILES: Final = (0.5, 99.5)
"""What is shown as black and white where a file names no window."""
OLDEST: Final = 90
"""Age, in years, that stands for all above, as HIPAA's Safe Harbor asks."""
_MAX_FRAMES_PIXELS: Final = 20 * MAX_PIXELS
_GAUSS_ABOVE: Final = 20.0
"""No scanner has so many tesla: the field is in gauss."""
_GREYS: Final = ("MONOCHROME1", "MONOCHROME2")
_PALETTE: Final = "PALETTE COLOR"
_COLOURS: Final = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_DIRECTORY: Final = "1.2.840.10008.1.3.10"
_NO_SLICES: Final = ("RT ", "Segmentation", "Parametric Map", "Raw Data", "Surface")
"""Starts of names of SOP classes whose pixels, if any, are no picture of anatomy."""
_MODALITIES: Final = frozenset(
    ("CR", "CT", "DX", "ES", "IO", "MG", "NM", "OT", "PT", "RF", "SC", "SM", "US", "XA", "XC")
)
"""Those that are named in a message; another text could be anything."""
_VENDORS: Final = {
    "siemens": "siemens",
    "philips": "philips",
    "toshiba": "canon",
    "canon": "canon",
    "hitachi": "fujifilm",
    "fujifilm": "fujifilm",
    "bruker": "bruker",
    "esaote": "esaote",
    "united imaging": "united imaging",
    "uih": "united imaging",
    "hyperfine": "hyperfine",
    "ge": "ge",
    "general electric": "ge",
}
_PLANES: Final = ("sagittal", "coronal", "axial")
"""By the axis the slice is normal to: DICOM's x, y and z."""
_OTHER_CONTRASTS: Final = re.compile(
    r"T2\s*\*|T2STAR|\b(DWI|DTI|ADC|TRACE|EPI|SWI|SWAN|GRE|HEMO|FFE|PERF\w*|DSC|DCE|ASL|BOLD|FMRI"
    r"|MRA|TOF|MRV|MRS|SPECTRO\w*|PD|PROTON|STIR|MAP|LOC\w*|SCOUT|SURVEY|SUB\w*)\b"
)
_CONTRAST_GIVEN: Final = re.compile(
    r"\+\s*C\b|\+\s*GD\b|\bC\+|\b(CE|GD|GAD\w*|POST(GD|GAD\w*|CONTRAST|KM)?|CONTRAST|KM)\b"
)
_CONTRAST_NOT_GIVEN: Final = re.compile(
    r"\b(PRE|NATIV\w*|PLAIN|WITHOUT|NON|NO|W/O|WO|OHNE)\b|\bC\+\s*/"
)
_FLAIR: Final = re.compile(r"FLAIR|\bDARK\s*FLUID\b")


@dataclass(frozen=True)
class Acquisition:
    """How a slice was taken, and of whom, as far as that names nobody; None where unknown."""

    plane: str | None = None
    """Axial, coronal or sagittal."""
    sequence: str | None = None
    """T1, T1ce, T2 or FLAIR; None when the file does not clearly say so."""
    field_strength: float | None = None
    """Tesla."""
    vendor: str | None = None
    """Of the scanner, in lower case; `other` for one not known here."""
    sex: str | None = None
    """F, M or O."""
    age: int | None = None
    """Years; 90 stands for all above."""


@dataclass(frozen=True)
class Identifiers:
    """The file's own identifiers, never to be stored, logged or shown; None where empty."""

    patient_id: str | None = field(repr=False)
    study_uid: str | None = field(repr=False)
    series_uid: str | None = field(repr=False)
    sop_uid: str | None = field(repr=False)


@dataclass(frozen=True)
class Header:
    """What a DICOM file says besides its pixels."""

    identifiers: Identifiers
    acquisition: Acquisition
    frames: int
    """Frames it promises."""


def is_dicom(head: bytes) -> bool:
    """Say whether the first 132 bytes or more look like DICOM, with a preamble or without."""
    if head[128:132] == b"DICM":
        return True
    # A bare data set starts with a short tag of group 2 or 8, in either byte order.
    return (head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00") or (
        head[:3] in (b"\x00\x02\x00", b"\x00\x08\x00")
    )


def read_header(data: bytes, any_modality: bool = False) -> Header:
    """Read what a DICOM file says besides its pixels, and refuse what is no MR slice.

    Raises:
        ImageError: damaged, a directory, no pixels, no picture (RT, segmentation), or not
            MR unless `any_modality`.

    """
    with _reading():
        dataset = _parse(data)
        _refuse_other(dataset, any_modality)
        identifiers = Identifiers(
            _text(dataset, "PatientID"),
            _text(dataset, "StudyInstanceUID"),
            _text(dataset, "SeriesInstanceUID"),
            _text(dataset, "SOPInstanceUID"),
        )
        return Header(identifiers, _acquisition(dataset), _frame_count(dataset))


def read_frames(data: bytes) -> list[NDArray[np.uint8]]:
    """Return the grey pixels [height, width] of every frame, as a viewer first shows them.

    Stored values go through the rescale (or modality LUT), then through the file's first
    VOI LUT or window, else the frame's 0.5 and 99.5 percentiles, or where these are equal
    its least and greatest value (DICOM PS3.3 C.11.1 and C.11.2); MONOCHROME1 is inverted,
    colour becomes luma (ITU-R 601).

    Raises:
        ImageError: damaged, no decoder, too large, a rescale that is no number, or other
            than the promised number of frames.

    """
    with _reading():
        dataset = _parse(data)
        _check_image(dataset)
        return [_grey(dataset, index, pixels) for index, pixels in enumerate(_decoded(dataset))]


@contextmanager
def _reading() -> Iterator[None]:
    """Keep pydicom's warnings to itself, for they quote values, and its errors to one code."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    # Its children log by themselves, and ask their parent for the level only.
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001 - pydicom and its decoders raise many types
        raise ImageError(
            "unreadable", f"damaged, or not DICOM that can be read ({type(error).__name__})"
        ) from None
    finally:
        logger.setLevel(level)


def _parse(data: bytes) -> "Dataset":
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _refuse_other(dataset: "Dataset", any_modality: bool) -> None:
    sop_class = _text(dataset, "SOPClassUID")
    media = _text(dataset.file_meta, "MediaStorageSOPClassUID")
    if _DIRECTORY in (sop_class, media):
        raise ImageError("dicomdir", "a DICOMDIR lists other files; it holds no image")
    name = _class_name(sop_class or media)
    if "PixelData" not in dataset or not dataset["PixelData"].value:
        raise ImageError("no_pixels", f"holds no pixels ({name})")
    if name.startswith(_NO_SLICES):
        raise ImageError("not_a_slice", f"no picture of anatomy ({name})")
    modality = _text(dataset, "Modality")
    if modality != "MR" and not any_modality:
        found = f"modality {modality}" if modality in _MODALITIES else "a modality"
        raise ImageError("modality", f"{found} that is not MR; --modality any takes it")


def _class_name(uid: str | None) -> str:
    from pydicom.uid import UID_dictionary

    return str(UID_dictionary[uid][0]) if uid in UID_dictionary else "of an unknown SOP class"


def _frame_count(dataset: "Dataset") -> int:
    return max(1, int(dataset.get("NumberOfFrames") or 1))


def _check_image(dataset: "Dataset") -> None:
    if _text(dataset, "PhotometricInterpretation") not in (*_GREYS, *_COLOURS, _PALETTE):
        raise ImageError("unknown_colour", "neither grey nor colour of a known kind")
    pixels = int(dataset.Rows) * int(dataset.Columns)
    if pixels > MAX_PIXELS:
        raise ImageError("too_large", f"{pixels:,} pixels, more than the limit of {MAX_PIXELS:,}")
    if pixels * _frame_count(dataset) > _MAX_FRAMES_PIXELS:
        raise ImageError(
            "too_large", f"more pixels over all frames than the limit of {_MAX_FRAMES_PIXELS:,}"
        )


def _decoded(dataset: "Dataset") -> list[NDArray[Any]]:
    """Return the stored pixels of every frame, colour as RGB."""
    from pydicom.pixels import get_decoder, iter_pixels
    from pydicom.pixels.utils import get_expected_length

    promised = _frame_count(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        expected = get_expected_length(dataset)
        _check_frames(promised, len(dataset.PixelData) * promised // max(1, expected), "at least")
    elif not get_decoder(syntax).is_available:
        raise ImageError(
            "no_decoder",
            f"compressed as {syntax.name}, for which no decoder is installed; "
            "pip install 'btray[dicom-jpeg]'",
        )
    frames = list(iter_pixels(dataset))
    _check_frames(promised, len(frames), "exactly")
    return frames


def _check_frames(promised: int, found: int, how: str) -> None:
    if found < promised or (found > promised and how == "exactly"):
        raise ImageError("frame_count", f"{promised} frames promised, {found} whole ones found")


def _grey(dataset: "Dataset", index: int, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    interpretation = _text(dataset, "PhotometricInterpretation")
    if interpretation == _PALETTE:
        from pydicom.pixels import apply_color_lut

        colours = apply_color_lut(pixels, dataset)[..., :3]
        return _luma(colours, int(np.iinfo(colours.dtype).max))
    if interpretation in _COLOURS:
        return _luma(pixels, 2 ** int(dataset.BitsStored) - 1)
    if pixels.ndim != 2:
        raise ImageError("unknown_colour", "grey by its header, with several values a pixel")
    shown = _windowed(dataset, index, _rescaled(dataset, index, pixels))
    return 255 - shown if interpretation == "MONOCHROME1" else shown


def _luma(colours: NDArray[Any], white: int) -> NDArray[np.uint8]:
    if white == 255:
        return np.asarray(Image.fromarray(colours.astype(np.uint8)).convert("L"))
    return window(colours @ np.array([0.299, 0.587, 0.114]), 0, white)


def _rescaled(dataset: "Dataset", index: int, pixels: NDArray[Any]) -> NDArray[np.float64]:
    if dataset.get("ModalityLUTSequence"):
        from pydicom.pixels import apply_modality_lut

        return apply_modality_lut(pixels, dataset).astype(np.float64)
    place = _functional(dataset, index, "PixelValueTransformationSequence") or dataset
    slope = _rescale(place, "RescaleSlope", 1.0)
    intercept = _rescale(place, "RescaleIntercept", 0.0)
    if slope == 0:
        raise ImageError("bad_rescale", "a rescale slope of 0 leaves no image")
    return pixels.astype(np.float64) * slope + intercept


def _rescale(place: "Dataset", name: str, default: float) -> float:
    """Return a rescale's part, or the default where it is not there; never pass over a bad one."""
    if name not in place or place[name].is_empty:
        return default
    value = _number(place, name)
    if value is None:
        raise ImageError("bad_rescale", f"{name} is no finite number")
    return value


def _windowed(dataset: "Dataset", index: int, values: NDArray[np.float64]) -> NDArray[np.uint8]:
    if dataset.get("VOILUTSequence"):
        return _through_lut(dataset, values)
    place = _functional(dataset, index, "FrameVOILUTSequence") or dataset
    if "WindowCenter" in place and not place["WindowCenter"].is_empty:
        return _through_window(place, values)
    low, high = np.percentile(values, PERCENTILES)
    if low == high:  # fewer pixels differ than the percentiles leave out
        low, high = values.min(), values.max()
    return window(values, float(low), float(high))


def _through_lut(dataset: "Dataset", values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Apply the first VOI LUT, whose white is of its own bits (DICOM PS3.3 C.11.2.1.1)."""
    from pydicom.dataset import Dataset
    from pydicom.pixels import apply_voi

    item = dataset.VOILUTSequence[0]
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    if not 8 <= bits <= 16:
        raise ImageError("bad_window", "its VOI LUT has not 8 to 16 bits")
    # Told of 8 bits, pydicom looks up with 8 bits too, and wraps around after 256 entries.
    wide, place = Dataset(), Dataset()
    wide.LUTDescriptor = [entries, first, 16]
    wide.add(item["LUTData"])
    place.file_meta, place.VOILUTSequence = dataset.file_meta, [wide]
    shown = apply_voi(np.rint(values).astype(np.int64), place)
    return window(shown.astype(np.float64), 0, 2**bits - 1)


def _through_window(place: "Dataset", values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Apply the first window, by the formulas of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    center, width = _number(place, "WindowCenter"), _number(place, "WindowWidth")
    if center is None or width is None or width <= 0:
        raise ImageError("bad_window", "its window is no centre with a width above 0")
    function = _text(place, "VOILUTFunction") or "LINEAR"
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values - center) / width, -700, 700)
        return window(1 / (1 + np.exp(exponent)), 0, 1)
    # A width of 1 or less is against LINEAR's rules; scaled pixels have it nevertheless.
    if function == "LINEAR" and width > 1:
        center, width = center - 0.5, width - 1
    return window(values, center - width / 2, center + width / 2)


def _functional(dataset: "Dataset", index: int, name: str) -> "Dataset | None":
    """Return an enhanced image's own group of settings of one frame, else of all frames."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in (*own[index : index + 1], *shared[:1]):
        if groups.get(name):
            return groups[name].value[0]  # type: ignore[no-any-return]
    return None


def _acquisition(dataset: "Dataset") -> Acquisition:
    sex = _text(dataset, "PatientSex")
    return Acquisition(
        plane=_plane(dataset),
        sequence=_sequence(dataset),
        field_strength=_field_strength(dataset),
        vendor=_vendor(dataset),
        sex=sex if sex in ("F", "M", "O") else None,
        age=_age(dataset),
    )


def _plane(dataset: "Dataset") -> str | None:
    """Return the plane that all frames have."""
    groups = len(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    planes = {_frame_plane(dataset, index) for index in range(max(1, groups))}
    return planes.pop() if len(planes) == 1 else None


def _frame_plane(dataset: "Dataset", index: int) -> str | None:
    place = _functional(dataset, index, "PlaneOrientationSequence") or dataset
    cosines = _numbers(place, "ImageOrientationPatient")
    if len(cosines) != 6:
        return None
    normal = np.abs(np.cross(cosines[:3], cosines[3:]))
    return _PLANES[int(normal.argmax())] if normal.max() > 0.5 else None


def _field_strength(dataset: "Dataset") -> float | None:
    value = _number(dataset, "MagneticFieldStrength")
    tesla = value / 10_000 if value is not None and value > _GAUSS_ABOVE else value
    return tesla if tesla is not None and 0 < tesla <= _GAUSS_ABOVE else None


def _vendor(dataset: "Dataset") -> str | None:
    name = _text(dataset, "Manufacturer")
    if name is None:
        return None
    words = f" {' '.join(re.findall('[a-z]+', name.lower()))} "
    known = (vendor for word, vendor in _VENDORS.items() if f" {word} " in words)
    return next(known, "other")


def _age(dataset: "Dataset") -> int | None:
    text = _text(dataset, "PatientAge")
    years = _years(text) if text else _years_between(dataset, "PatientBirthDate", "StudyDate")
    return None if years is None or not 0 <= years <= 130 else min(years, OLDEST)


def _years(age: str) -> int | None:
    """Return whole years of an age string such as 045Y or 018M."""
    found = re.fullmatch(r"(\d{1,3})([DWMY])", age)
    if found is None:
        return None
    per_year = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[found[2]]
    return int(int(found[1]) / per_year)


def _years_between(dataset: "Dataset", birth: str, study: str) -> int | None:
    dates = [_text(dataset, name) or "" for name in (birth, study)]
    if not all(re.fullmatch(r"\d{8}", date) for date in dates):
        return None
    born, seen = dates
    return int(seen[:4]) - int(born[:4]) - (seen[4:] < born[4:])


def _sequence(dataset: "Dataset") -> str | None:
    """Return T1, T1ce, T2 or FLAIR where names and timing leave no doubt."""
    texts = (_text(dataset, name) or "" for name in ("SeriesDescription", "ProtocolName"))
    words = re.sub(r"[_\-.,;:()\[\]]", " ", " ".join(texts).upper())
    if _OTHER_CONTRASTS.search(words):
        return None
    t1 = re.search(r"\bT1(W\w*)?\b|MP\s?RAGE|\bBRAVO\b", words) is not None
    t2 = re.search(r"\bT2(W\w*)?\b", words) is not None
    flair = _FLAIR.search(words) is not None
    if not flair and re.search(r"\bTIRM\b", words):
        return None  # it suppresses fat or water, and does not say which
    if (t1 and t2) or (t1 and flair):
        return None
    if flair:
        return "FLAIR"
    if not t1 and not t2:
        return _with_contrast(dataset, words, _by_timing(dataset))
    return _with_contrast(dataset, words, "T1" if t1 else "T2")


def _by_timing(dataset: "Dataset") -> str | None:
    """Tell plain spin echoes apart by repetition and echo time, in milliseconds."""
    technique = _texts(dataset, "ScanningSequence")
    repetition, echo = _number(dataset, "RepetitionTime"), _number(dataset, "EchoTime")
    if technique != ["SE"] or repetition is None or echo is None:
        return None
    if 200 <= repetition <= 800 and 0 < echo <= 30:
        return "T1"
    return "T2" if repetition >= 2000 and 80 <= echo <= 200 else None


def _with_contrast(dataset: "Dataset", words: str, sequence: str | None) -> str | None:
    """Tell T1 with a contrast agent from T1 without; None where the file contradicts itself."""
    if sequence != "T1":
        return sequence
    agent = (_text(dataset, "ContrastBolusAgent") or "NONE").upper()
    given = agent not in ("NONE", "NO", "N", "0") or _CONTRAST_GIVEN.search(words) is not None
    if _CONTRAST_NOT_GIVEN.search(words):
        return None if given else "T1"
    return "T1ce" if given else "T1"


def _texts(place: "Dataset", name: str) -> list[str]:
    """Return the values of an element as text; none if it cannot be read."""
    try:
        value = place.get(name)
    except Exception:  # noqa: BLE001 - a damaged element beside sound ones is passed over
        return []
    if value is None:
        return []
    values = [value] if isinstance(value, str | int | float) else list(value)
    return [text for one in values if (text := str(one).strip("\0 "))]


def _text(place: "Dataset", name: str) -> str | None:
    return next(iter(_texts(place, name)), None)


def _numbers(place: "Dataset", name: str) -> list[float]:
    """Return the values of an element as finite numbers, or none if one of them is not."""
    try:
        numbers = [float(text) for text in _texts(place, name)]
    except ValueError:
        return []
    return numbers if all(math.isfinite(number) for number in numbers) else []


def _number(place: "Dataset", name: str) -> float | None:
    return next(iter(_numbers(place, name)), None)
