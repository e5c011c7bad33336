"""Phantom volumes on disk: DICOM CT series and NIfTI files, placed right in patient space.

No time and no random identifier goes into a file: UIDs derive from the generator that is
passed in, so a seed fixes every byte.

References: DICOM PS3.3 (CT Image IOD), NIfTI-1.
"""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from gmai_lib.dataset.phantoms import CT_WINDOW, Volume

_FIELD_MM, _SLICE_MM = 400.0, 10.0  # CT: width of a picture, distance of slices


def write_dicom_series(folder: Path, volume: Volume, patient: str, rng: np.random.Generator):
    """Write CT.1, CT.2, ... (no suffix) and seg.nii.gz, the lesion instances, into a new folder."""
    folder.mkdir()
    millimetres = _FIELD_MM / volume.voxels.shape[2]
    corner = -_FIELD_MM / 2 + millimetres / 2
    seed = [folder.name, str(rng.integers(2**63))]
    study, series_uid, frame = (generate_uid(entropy_srcs=[*seed, w]) for w in ("st", "se", "fr"))
    for k, slice_ in enumerate(volume.voxels):
        ds = pydicom.Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        uid = generate_uid(entropy_srcs=[*seed, str(k)])
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series_uid, frame
        ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        ds.Modality, ds.BodyPartExamined = "CT", {"lung": "CHEST", "liver": "ABDOMEN"}[volume.organ]
        ds.PatientName, ds.PatientID = f"PHANTOM^{patient}", patient
        ds.PatientBirthDate = ds.PatientSex = ds.StudyDate = ds.StudyTime = ""
        ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName, ds.Manufacturer = "", "", "", ""
        ds.SeriesDescription = "procedural phantom, no person"
        ds.PatientIdentityRemoved = "YES"
        ds.SeriesNumber, ds.InstanceNumber = 1, k + 1
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [round(corner, 4), round(corner, 4), _SLICE_MM * k]
        ds.PixelSpacing = [round(millimetres, 6)] * 2
        ds.SliceThickness = _SLICE_MM
        ds.Rows, ds.Columns = slice_.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, 1
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
        ds.WindowCenter, ds.WindowWidth = CT_WINDOW[volume.organ]
        ds.PixelData = (slice_ + 1024).astype("<i2").tobytes()
        ds.save_as(folder / f"CT.{k + 1}", enforce_file_format=True)
    # DICOM is left-posterior-superior, NIfTI right-anterior-superior: x and y change sign.
    step = round(millimetres, 6)
    affine = np.diag([-step, -step, _SLICE_MM, 1.0])
    affine[:2, 3] = -round(corner, 4)
    write_nifti(folder / "seg.nii.gz", volume.masks, affine)


def nifti_affine(volume: Volume) -> np.ndarray:
    """Return voxel (column, row, slice) -> RAS mm: brain axial, knee sagittal, torso coronal."""
    slices, _, size = volume.voxels.shape
    # Slices are much thicker than pixels: readers take the coarse axis as the slice axis.
    width, thick = {"brain": (220, 15), "knee": (180, 15), "torso": (800, 50)}[volume.organ]
    wide = width / size
    directions = {
        "brain": ((-wide, 0, 0), (0, -wide, 0), (0, 0, thick)),
        "knee": ((0, -wide, 0), (0, 0, -wide), (thick, 0, 0)),
        "torso": ((-wide, 0, 0), (0, 0, -wide), (0, thick, 0)),
    }[volume.organ]
    affine = np.eye(4)
    affine[:3, :3] = np.array(directions).T
    middle = np.array([size - 1, size - 1, slices - 1]) / 2
    affine[:3, 3] = -affine[:3, :3] @ middle
    return affine


def write_nifti(path: Path, slices: np.ndarray, affine: np.ndarray):
    """Write (Z, H, W) as voxels (column, row, slice)."""
    path.parent.mkdir(exist_ok=True)
    image = nibabel.Nifti1Image(np.ascontiguousarray(slices.transpose(2, 1, 0)), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nibabel.save(image, path)
