"""Small collections in the layout of The Cancer Imaging Archive: CT, RTSTRUCT and SEG files."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

SHAPE = (6, 24, 32)  # slices, rows, columns
SPACING = (5.0, 2.0, 2.0)  # millimetres
STUDY = "09-18-2008-StudyID-NA-69331"


def uid(*words) -> str:
    return generate_uid(entropy_srcs=[str(word) for word in words])


def _header(kind, modality: str, patient: str, series: str, name: str) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = kind
    ds.SOPInstanceUID = uid(patient, series, name)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.PatientID, ds.PatientName = patient, f"{patient}^"
    ds.PatientBirthDate = ds.PatientSex = ds.StudyDate = ds.StudyTime = ""
    ds.StudyID = ds.AccessionNumber = ds.ReferringPhysicianName = ds.Manufacturer = ""
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(patient, "study"), uid(patient, series)
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = modality, 1, 1
    return ds


def ct(folder: Path, patient: str, shape=SHAPE, spacing=SPACING, voxels=None) -> list[Dataset]:
    """Write 1-1.dcm, ... with the first slice lowest; x from -20, y from -30, z from 100 mm."""
    folder.mkdir(parents=True)
    slices = []
    for k in range(shape[0]):
        ds = _header(CTImageStorage, "CT", patient, folder.name, f"slice {k}")
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid(patient, "frame"), ""
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.InstanceNumber = k + 1
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [-20, -30, 100 + spacing[0] * k]
        ds.PixelSpacing, ds.SliceThickness = [spacing[1], spacing[2]], spacing[0]
        ds.Rows, ds.Columns = shape[1:]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, 1
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        pixels = np.full(shape[1:], 1024 + 10 * k) if voxels is None else voxels[k] + 1024
        ds.PixelData = pixels.astype("<i2").tobytes()
        ds.save_as(folder / f"1-{k + 1}.dcm", enforce_file_format=True)
        slices.append(ds)
    return slices


def rectangle(ds: Dataset, x1: float, y1: float, x2: float, y2: float) -> list[float]:
    """Contour data around the pixels x1 to x2 - 1 and y1 to y2 - 1 of an axial slice."""
    return polygon(ds, [(x1, y1), (x2, y1), (x2, y2), (x1, y2)])


def polygon(ds: Dataset, corners) -> list[float]:
    """Contour data through corners given in pixels from the slice's top left corner."""
    cosines = np.array(ds.ImageOrientationPatient, float).reshape(2, 3)
    across, down = cosines[0] * ds.PixelSpacing[1], cosines[1] * ds.PixelSpacing[0]
    origin = np.array(ds.ImagePositionPatient, float)
    points = [origin + (x - 0.5) * across + (y - 0.5) * down for x, y in corners]
    return [round(float(v), 4) for v in np.ravel(points)]


def rtstruct(path: Path, slices: list[Dataset], rois: dict[str, list]) -> Dataset:
    """Write one; `rois`: name -> contours, each (slice or None, contour data[, type])."""
    path.parent.mkdir(parents=True)
    first = slices[0]
    ds = _header(RTStructureSetStorage, "RTSTRUCT", first.PatientID, path.parent.name, "rs")
    ds.StructureSetLabel, ds.StructureSetDate, ds.StructureSetTime = "RTSTRUCT", "", ""
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = [_reference(item) for item in slices]
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
    study.ReferencedSOPInstanceUID = first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = number, name, "MANUAL"
        roi.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for image, data, *kind in contours:
            contour = Dataset()
            if image is not None:
                contour.ContourImageSequence = [_reference(image)]
            contour.ContourGeometricType = kind[0] if kind else "CLOSED_PLANAR"
            contour.NumberOfContourPoints, contour.ContourData = len(data) // 3, data
            drawn.ContourSequence.append(contour)
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(drawn)
    ds.save_as(path, enforce_file_format=True)
    return ds


def _reference(image: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = image.SOPClassUID
    item.ReferencedSOPInstanceUID = image.SOPInstanceUID
    return item


def seg(
    path: Path, slices: list[Dataset], segments: dict[str, np.ndarray], kind: str = "BINARY", **more
) -> Dataset:
    """Write one; `segments`: label -> (slices, rows, columns), boolean or fractions."""
    path.parent.mkdir(parents=True)
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Mass,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, label in enumerate(segments, start=1)
    ]
    pixels = np.stack(list(segments.values()), axis=-1)
    if kind == "LABELMAP":
        pixels = (pixels * np.arange(1, len(segments) + 1)).max(axis=-1).astype(np.uint8)
    made = highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=pixels.astype(np.float32 if kind == "FRACTIONAL" else np.uint8),
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=uid(slices[0].PatientID, path.parent.name),
        series_number=300,
        sop_instance_uid=uid(slices[0].PatientID, path.parent.name, "seg"),
        instance_number=1,
        manufacturer="nobody",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
        **more,
    )
    made.save_as(path)
    return pydicom.dcmread(path)


def block(*ranges: slice, shape=SHAPE) -> np.ndarray:
    """A boolean volume (slices, rows, columns) that is True in a box."""
    voxels = np.zeros(shape, bool)
    voxels[ranges] = True
    return voxels
