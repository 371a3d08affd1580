import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom import config
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, RLELossless

from btray.core.dicom import is_dicom, read_frames, read_header
from btray.core.images import ImageError

RAMP = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)


# The tests write what DICOM forbids.
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")


@pytest.fixture
def unchecked():
    """Let pydicom write values that DICOM forbids."""
    settings = config.settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(settings), "writing_validation_mode", config.IGNORE)
        yield


def only(data):
    (frame,) = read_frames(data)
    assert frame.dtype == np.uint8
    return frame


def code(call, *arguments):
    with pytest.raises(ImageError) as caught:
        call(*arguments)
    return caught.value.code


def acquisition(make, **elements):
    return read_header(make(RAMP, **elements)).acquisition


def test_percentiles_are_the_window_where_there_is_none(make_dicom):
    low, high = np.percentile(RAMP, (0.5, 99.5))
    expected = np.round(np.clip((RAMP - low) / (high - low), 0, 1) * 255)
    assert (only(make_dicom(RAMP)) == expected).all()


def test_window_after_rescale(make_dicom):
    elements = {
        "RescaleSlope": 2,
        "RescaleIntercept": -100,
        "WindowCenter": 400,
        "WindowWidth": 201,
    }
    frame = only(make_dicom(RAMP, **elements))
    values = RAMP * 2.0 - 100
    # PS3.3 C.11.2.1.2.1
    expected = np.clip((values - 399.5) / 200 + 0.5, 0, 1) * 255
    assert (frame == np.round(expected)).all()


def test_linear_exact_and_sigmoid_windows(make_dicom):
    elements = {"WindowCenter": 500, "WindowWidth": 200}
    exact = only(make_dicom(RAMP, VOILUTFunction="LINEAR_EXACT", **elements))
    np.testing.assert_allclose(exact, np.clip((RAMP - 500.0) / 200 + 0.5, 0, 1) * 255, atol=0.51)
    sigmoid = only(make_dicom(RAMP, VOILUTFunction="SIGMOID", **elements))
    expected = 255 / (1 + np.exp(-4 * (RAMP - 500.0) / 200))
    np.testing.assert_allclose(sigmoid, expected, atol=0.51)


def test_first_of_several_windows(make_dicom):
    several = make_dicom(RAMP, WindowCenter=[500, 100], WindowWidth=[200, 50])
    one = make_dicom(RAMP, WindowCenter=500, WindowWidth=200)
    assert (only(several) == only(one)).all()


def test_voi_lut_goes_before_a_window(make_dicom):
    item = Dataset()
    item.LUTDescriptor = [1024, 0, 16]
    item.LUTData = [65535 - 64 * n for n in range(1024)]
    item["LUTData"].VR = "US"
    frame = only(make_dicom(RAMP, VOILUTSequence=Sequence([item]), WindowCenter=1, WindowWidth=1))
    assert (frame == np.round((65535 - 64.0 * RAMP) / 65535 * 255)).all()


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_white_of_a_voi_lut_is_of_its_own_bits(make_dicom, bits):
    item = Dataset()
    item.LUTDescriptor = [1024, 0, bits]
    item.LUTData = [round(n / 1023 * (2**bits - 1)) for n in range(1024)]
    item["LUTData"].VR = "US"
    frame = only(make_dicom(RAMP, VOILUTSequence=Sequence([item])))
    np.testing.assert_allclose(frame, RAMP / 1023 * 255, atol=1)


def test_a_few_bright_pixels_are_not_black(make_dicom):
    pixels = np.full((32, 32), 7, np.uint16)
    pixels[4, 5], pixels[6, 7] = 107, 57
    frame = only(make_dicom(pixels))
    assert (frame[4, 5], frame[6, 7], frame[0, 0]) == (255, 128, 0)
    assert not only(make_dicom(np.full((32, 32), 7, np.uint16))).any()


def test_monochrome1_is_inverted(make_dicom):
    inverted = only(make_dicom(RAMP, PhotometricInterpretation="MONOCHROME1"))
    assert (inverted == 255 - only(make_dicom(RAMP))).all()


def test_signed_pixels(make_dicom):
    assert (only(make_dicom(RAMP.astype(np.int16) - 500)) == only(make_dicom(RAMP))).all()


def test_frames_come_in_order(make_dicom):
    frames = np.stack([RAMP, RAMP[::-1], RAMP.T])
    read = read_frames(make_dicom(frames))
    assert len(read) == 3
    assert [(frame == only(make_dicom(one))).all() for frame, one in zip(read, frames, strict=True)]
    assert read_header(make_dicom(frames)).frames == 3


def test_a_frame_of_an_enhanced_image_has_its_own_window(make_dicom):
    def group(center):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 100
        group.FrameVOILUTSequence = Sequence([window])
        return group

    orientation, shared = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    shared.PlaneOrientationSequence = Sequence([orientation])
    data = make_dicom(
        np.stack([RAMP, RAMP]),
        sop_class=EnhancedMRImageStorage,
        PerFrameFunctionalGroupsSequence=Sequence([group(100), group(800)]),
        SharedFunctionalGroupsSequence=Sequence([shared]),
    )
    first, second = read_frames(data)
    assert (first == only(make_dicom(RAMP, WindowCenter=100, WindowWidth=100))).all()
    assert (second == only(make_dicom(RAMP, WindowCenter=800, WindowWidth=100))).all()
    assert read_header(data).acquisition.plane == "sagittal"


def test_compressed_frames_are_those_stored(make_dicom):
    frames = np.stack([RAMP, RAMP[::-1]])
    packed = read_frames(make_dicom(frames, syntax=RLELossless))
    assert (np.stack(packed) == np.stack(read_frames(make_dicom(frames)))).all()


@pytest.mark.parametrize(
    "name",
    ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"],
)
def test_every_coding_of_one_slice_gives_the_same_pixels(name):
    def read(path):
        return only(Path(get_testdata_file(path)).read_bytes())

    assert (read(f"MR_small_{name}.dcm") == read("MR_small.dcm")).all()


def test_colour_becomes_luma(make_dicom):
    rgb = np.zeros((32, 32, 3), np.uint8)
    rgb[..., 0] = 200
    data = make_dicom(
        RAMP.astype(np.uint8),
        PhotometricInterpretation="RGB",
        SamplesPerPixel=3,
        PlanarConfiguration=0,
        PixelData=rgb.tobytes(),
    )
    assert set(np.unique(only(data))) == {60}  # 0.299 x 200


def test_a_file_without_a_preamble(make_dicom):
    bare = make_dicom(RAMP, preamble=False)
    assert is_dicom(bare[:132])
    assert (only(bare) == only(make_dicom(RAMP))).all()
    assert read_header(bare).identifiers.patient_id == "P1"


@pytest.mark.parametrize("head", [b"", b"\x89PNG\r\n\x1a\n", b"plain text" * 20, b"\xff\xd8\xff"])
def test_what_is_no_dicom(head):
    assert not is_dicom(head)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"RescaleSlope": "NaN"}, "bad_rescale"),
        ({"RescaleSlope": 0}, "bad_rescale"),
        ({"RescaleIntercept": "Inf"}, "bad_rescale"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "bad_window"),
        ({"WindowCenter": 5, "WindowWidth": "NaN"}, "bad_window"),
        ({"PixelData": RAMP.tobytes()[:-400]}, "frame_count"),
        ({"Rows": 30_000, "Columns": 30_000}, "too_large"),
        ({"NumberOfFrames": 5}, "frame_count"),
        ({"PhotometricInterpretation": "QUATERNION"}, "unknown_colour"),
        ({"Rows": None}, "unreadable"),
    ],
)
def test_pixels_that_are_refused(make_dicom, elements, expected, unchecked):
    assert code(read_frames, make_dicom(RAMP, **elements)) == expected


def test_a_frame_that_is_missing(make_dicom):
    frames = np.stack([RAMP, RAMP])
    short = make_dicom(frames, NumberOfFrames=3)
    with pytest.raises(ImageError, match="3 frames promised, 2 whole ones found"):
        read_frames(short)
    packed = make_dicom(frames, syntax=RLELossless)
    assert code(read_frames, packed.replace(b"IS\x02\x002 ", b"IS\x02\x003 ")) in (
        "frame_count",
        "unreadable",
    )


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"Modality": "CT"}, "modality"),
        ({"Modality": None}, "modality"),
        ({"PixelData": None}, "no_pixels"),
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.481.2"}, "not_a_slice"),
        ({"sop_class": "1.2.840.10008.5.1.4.1.1.66.4"}, "not_a_slice"),
        ({"sop_class": "1.2.840.10008.1.3.10"}, "dicomdir"),
    ],
)
def test_what_is_no_mr_slice(make_dicom, elements, expected):
    pixels = None if "PixelData" in elements else RAMP
    assert code(read_header, make_dicom(pixels, **elements)) == expected


def test_any_modality(make_dicom):
    data = make_dicom(RAMP, Modality="CT")
    with pytest.raises(ImageError, match=r"modality CT .*--modality any"):
        read_header(data)
    assert read_header(data, any_modality=True).frames == 1


def test_values_of_a_file_are_not_in_messages_and_logs(make_dicom, caplog, unchecked):
    name = "XYLOPHON"
    data = make_dicom(RAMP, Modality=name, PatientAge=name, PatientBirthDate=name)
    caplog.clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with caplog.at_level(logging.DEBUG), pytest.raises(ImageError) as caught:
            read_header(data)
        header = read_header(data, any_modality=True)
    assert warned == []
    assert name not in str(caught.value) + caplog.text
    assert "P1" not in repr(header)


def test_a_decoder_logs_nothing(make_dicom, caplog):
    data = make_dicom(np.stack([RAMP, RAMP]), syntax=RLELossless)
    # The last frame's RLE header says where its second segment starts.
    place = data.rindex(b"\xfe\xff\x00\xe0") + 8 + 8
    damaged = data[:place] + b"\x14" + data[place + 1 :]
    logger = logging.getLogger("pydicom")
    caplog.set_level(logging.INFO, "pydicom")
    caplog.clear()
    assert code(read_frames, damaged) == "unreadable"
    assert caplog.records == []
    assert logger.level == logging.INFO


@pytest.mark.parametrize("data", [b"", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + b"x" * 500])
def test_damaged_headers(data):
    assert code(read_header, data) in ("unreadable", "no_pixels")


def test_a_file_cut_anywhere_is_refused(make_dicom):
    data = make_dicom(RAMP)
    for size in range(0, len(data) - 1, 97):
        with pytest.raises(ImageError):
            read_frames(data[:size])


@pytest.mark.parametrize(
    ("cosines", "plane"),
    [
        ([1, 0, 0, 0, 1, 0], "axial"),
        ([1, 0, 0, 0, 0, -1], "coronal"),
        ([0, 1, 0, 0, 0, -1], "sagittal"),
        ([1, 0, 0, 0, 0.9, -0.43], "axial"),
        ([0, 0, 0, 0, 0, 0], None),
        ([1, 0, 0], None),
        (None, None),
    ],
)
def test_plane(make_dicom, cosines, plane):
    assert acquisition(make_dicom, ImageOrientationPatient=cosines).plane == plane


@pytest.mark.parametrize(
    ("second", "plane"), [([1, 0, 0, 0, 1, 0], "axial"), ([0, 1, 0, 0, 0, -1], None)]
)
def test_a_plane_is_that_of_all_frames(make_dicom, second, plane):
    groups = []
    for cosines in ([1, 0, 0, 0, 1, 0], second):
        orientation, group = Dataset(), Dataset()
        orientation.ImageOrientationPatient = cosines
        group.PlaneOrientationSequence = Sequence([orientation])
        groups.append(group)
    data = make_dicom(
        np.stack([RAMP, RAMP]),
        sop_class=EnhancedMRImageStorage,
        PerFrameFunctionalGroupsSequence=Sequence(groups),
    )
    assert read_header(data).acquisition.plane == plane


@pytest.mark.parametrize(
    ("value", "tesla"), [(1.5, 1.5), (3, 3), (15000, 1.5), (0, None), (-1, None), (None, None)]
)
def test_field_strength(make_dicom, value, tesla):
    assert acquisition(make_dicom, MagneticFieldStrength=value).field_strength == tesla


@pytest.mark.parametrize(
    ("name", "vendor"),
    [
        ("SIEMENS", "siemens"),
        ("Siemens Healthineers", "siemens"),
        ("GE MEDICAL SYSTEMS", "ge"),
        ("Philips Medical Systems", "philips"),
        ("TOSHIBA_MEC", "canon"),
        ("Dr Imagerie", "other"),
        (None, None),
    ],
)
def test_vendor(make_dicom, name, vendor):
    assert acquisition(make_dicom, Manufacturer=name).vendor == vendor


@pytest.mark.parametrize(
    ("elements", "age"),
    [
        ({"PatientAge": "045Y"}, 45),
        ({"PatientAge": "018M"}, 1),
        ({"PatientAge": "095Y"}, 90),
        ({"PatientBirthDate": "19600615", "StudyDate": "20200614"}, 59),
        ({"PatientBirthDate": "19600615", "StudyDate": "20200615"}, 60),
        ({"PatientBirthDate": "20200615", "StudyDate": "20190615"}, None),
        ({}, None),
    ],
)
def test_age(make_dicom, elements, age):
    assert acquisition(make_dicom, **elements).age == age


@pytest.mark.parametrize(
    ("elements", "sequence"),
    [
        ({"SeriesDescription": "t1_se_tra"}, "T1"),
        ({"SeriesDescription": "AX T1 POST GD"}, "T1ce"),
        ({"SeriesDescription": "T1W +C"}, "T1ce"),
        ({"SeriesDescription": "AX T1 C+"}, "T1ce"),
        ({"SeriesDescription": "AX T1 (C+)"}, "T1ce"),
        ({"SeriesDescription": "T1 FSE C+ SAG"}, "T1ce"),
        ({"SeriesDescription": "T1 POSTGD"}, "T1ce"),
        ({"SeriesDescription": "T1 C+/C-"}, None),
        ({"SeriesDescription": "T1 SAG POSTERIOR"}, "T1"),
        ({"SeriesDescription": "TIRM DARK FLUID T2"}, "FLAIR"),
        ({"SeriesDescription": "t2_tirm_tra_dark-fluid"}, "FLAIR"),
        ({"SeriesDescription": "T2 W DARK FLUID"}, "FLAIR"),
        ({"SeriesDescription": "TIRM"}, None),
        ({"SeriesDescription": "T2 TIRM"}, None),
        ({"SeriesDescription": "T1", "ContrastBolusAgent": "Gadovist"}, "T1ce"),
        ({"SeriesDescription": "T1 pre", "ContrastBolusAgent": "Gadovist"}, None),
        ({"SeriesDescription": "T1", "ContrastBolusAgent": "NONE"}, "T1"),
        ({"SeriesDescription": "t2_tse_tra"}, "T2"),
        ({"SeriesDescription": "T2 FLAIR AX"}, "FLAIR"),
        ({"SeriesDescription": "T1 FLAIR"}, None),
        ({"SeriesDescription": "T2* GRE"}, None),
        ({"SeriesDescription": "ep2d_diff ADC"}, None),
        ({"SeriesDescription": "MPRAGE sag"}, "T1"),
        ({"SeriesDescription": "head"}, None),
        ({"ScanningSequence": "SE", "RepetitionTime": 500, "EchoTime": 15}, "T1"),
        ({"ScanningSequence": "SE", "RepetitionTime": 3000, "EchoTime": 100}, "T2"),
        ({"ScanningSequence": ["SE", "IR"], "RepetitionTime": 9000, "EchoTime": 100}, None),
        ({"ScanningSequence": "GR", "RepetitionTime": 500, "EchoTime": 15}, None),
        ({}, None),
    ],
)
def test_sequence(make_dicom, elements, sequence):
    assert acquisition(make_dicom, **elements).sequence == sequence
