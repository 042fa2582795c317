import json

import nibabel as nib
import numpy as np
import pytest

from cmb_bids.errors import BadData, CmbError, InputMissing, UsageError
from cmb_bids.interfaces.phase import MagnitudeOnly, PhaseToSWI, threads_given
from cmb_bids.volumes import read_json, read_volume

OUTPUTS = ("magnitude", "unwrapped", "highpass", "swi", "minip")


def save(path, data, affine=None, slope=None):
    image = nib.Nifti1Image(data, np.diag([1.0, 1, 2, 1]) if affine is None else affine)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    nib.save(image, path)
    return str(path)


@pytest.fixture
def scan(tmp_path):
    """Writes scan.json round one drawn echo; keywords replace parts of that echo."""
    rng = np.random.default_rng(0)
    shape = (24, 24, 12)
    magnitude = (100 + rng.normal(0, 3, shape)).astype(np.float32)
    phase = rng.uniform(-np.pi, np.pi, shape).astype(np.float32)

    def write(config=None, **changed):
        echo = {
            "echo": 1,
            "echo_time_s": 0.02,
            "magnitude": save(tmp_path / "sub-01_part-mag_T2starw.nii.gz", magnitude),
            "phase": save(tmp_path / "sub-01_part-phase_T2starw.nii.gz", phase),
            "phase_sidecar": {"Units": "rad"},
        }
        echo.update(changed)
        path = tmp_path / "scan.json"
        path.write_text(
            json.dumps({"id": "sub-01_T2starw", "echoes": [echo], "config": config or {}})
        )
        return path

    write.magnitude, write.phase, write.folder = magnitude, phase, tmp_path
    return write


def run(path, interface=PhaseToSWI):
    folder = path.parent
    names = OUTPUTS if interface is PhaseToSWI else ("magnitude", "minip")
    outputs = {f"out_{name}": str(folder / f"{name}.nii.gz") for name in names}
    return interface(scan=str(path), out_report=str(folder / "report.json"), **outputs).run(
        cwd=str(folder)
    )


def test_files_and_report(scan):
    result = run(scan())
    for name in OUTPUTS:
        volume = read_volume(getattr(result.outputs, f"out_{name}"))
        assert volume.data.shape == (24, 24, 12)
        assert np.allclose(volume.affine, np.diag([1, 1, 2, 1]))
    report = read_json(result.outputs.out_report)
    assert report["scaling_rule"] == "radians"
    assert report["polarity_confidence"] == "weak"
    assert report["echo_times_s"] == [0.02]


def test_every_vendor_gives_the_same_swi(scan):
    reference = read_volume(run(scan()).outputs.out_swi).data
    siemens = np.clip(np.round((scan.phase + np.pi) * 2048 / np.pi), 0, 4095).astype(np.uint16)
    path = save(scan.folder / "siemens.nii.gz", siemens)
    result = run(scan(phase=path, phase_sidecar={}))
    assert read_json(result.outputs.out_report)["scaling_rule"] == "siemens-unsigned"
    # A few voxels lie at half a turn, where rounding changes the side.
    close = np.isclose(read_volume(result.outputs.out_swi).data, reference, atol=0.5)
    assert close.mean() > 0.99


def test_real_and_imaginary(scan):
    signal = scan.magnitude * np.exp(1j * scan.phase)
    real = save(scan.folder / "real.nii.gz", np.round(signal.real).astype(np.int16))
    imaginary = save(scan.folder / "imag.nii.gz", np.round(signal.imag).astype(np.int16))
    result = run(scan(magnitude=None, phase=None, real=real, imaginary=imaginary))
    assert read_json(result.outputs.out_report)["scaling_rule"] == "real-imaginary"
    assert np.abs(read_volume(result.outputs.out_magnitude).data - scan.magnitude).max() < 2


def test_phase_with_every_second_slice_half_a_turn_off_gives_the_same_images(scan):
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in scan.phase.shape], indexing="ij")
    phase = (2 * x * y + z + 2 * np.exp(-20 * (x**2 + y**2 + z**2))).astype(np.float32)
    # Whatever the phase, a file is told to be radians by its range.
    phase[0, 0, :2] = -3.14, 3.14
    turned = phase.copy()
    turned[:, :, 1::2] = np.angle(np.exp(1j * (turned[:, :, 1::2] + np.pi)))
    images = {}
    for name, stored in {"plain": phase, "turned": turned}.items():
        result = run(scan(phase=save(scan.folder / f"{name}.nii.gz", stored)))
        report = read_json(result.outputs.out_report)
        assert report["alternate_slices_flipped"] is (name == "turned")
        images[name] = [
            read_volume(getattr(result.outputs, f"out_{image}")).data
            for image in ("unwrapped", "highpass", "swi")
        ]
    for plain, mended in zip(*images.values(), strict=True):
        np.testing.assert_allclose(mended, plain, atol=1e-3)


def refused(path, interface=PhaseToSWI):
    with pytest.raises(CmbError) as error:
        run(path, interface)
    return error.value


def test_grids_that_differ(scan):
    shape = save(scan.folder / "p.nii.gz", scan.phase[:-1])
    error = refused(scan(phase=shape))
    assert isinstance(error, BadData)
    assert "shape" in str(error)
    assert "p.nii.gz" in str(error)
    moved = np.diag([1.0, 1, 2, 1])
    moved[0, 3] = 0.5
    assert "affine" in str(refused(scan(phase=save(scan.folder / "q.nii", scan.phase, moved))))
    moved[0, 3] = 1e-5
    run(scan(phase=save(scan.folder / "r.nii", scan.phase, moved)))


@pytest.mark.parametrize(
    ("value", "says"), [(None, "Add EchoTime"), (20, "0.02"), (0, "EchoTime"), ("x", "EchoTime")]
)
def test_echo_times(scan, value, says):
    error = refused(scan(echo_time_s=value))
    assert error.exit_code == 65
    assert says in str(error)
    assert "sub-01_part-mag_T2starw.json" in str(error)


def test_truncated_and_empty_files(scan):
    path = scan.folder / "cut.nii.gz"
    save(path, scan.phase)
    path.write_bytes(path.read_bytes()[:2000])
    assert "cut.nii.gz" in str(refused(scan(phase=str(path))))
    zero = save(scan.folder / "zero.nii.gz", np.zeros_like(scan.magnitude))
    assert "no signal" in str(refused(scan(magnitude=zero)))
    assert "no signal" in str(refused(scan(magnitude=zero), MagnitudeOnly))


def test_phase_that_is_missing_or_of_no_scale(scan):
    assert isinstance(refused(scan(phase=None)), InputMissing)
    assert isinstance(refused(scan(phase=str(scan.folder / "none.nii.gz"))), InputMissing)
    odd = save(scan.folder / "odd.nii.gz", np.arange(24 * 24 * 12).reshape(24, 24, 12) / 10.0)
    assert "phase.scale" in str(refused(scan(phase=odd)))


def test_unknown_key(scan):
    error = refused(scan(config={"phase": {"sigma": 3}}))
    assert isinstance(error, UsageError)
    assert "phase.sigma" in str(error)


def test_magnitude_only_needs_no_echo_time(scan):
    result = run(scan(echo_time_s=None, phase=None), MagnitudeOnly)
    report = read_json(result.outputs.out_report)
    assert report["kind"] == "magnitude"
    assert np.allclose(read_volume(result.outputs.out_magnitude).data, scan.magnitude)


def test_one_voxel_does_not_end_in_a_traceback(scan):
    one = np.ones((1, 1, 1), np.float32)
    magnitude = save(scan.folder / "m.nii", one)
    files = {"magnitude": magnitude, "phase": save(scan.folder / "p.nii", one)}
    assert "everywhere" in str(refused(scan(**files)))
    told = run(scan(config={"phase": {"scale": "radians"}}, **files))
    assert read_volume(told.outputs.out_swi).data.shape == (1, 1, 1)


def test_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_given(2) == 2
    assert threads_given(None) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert threads_given(None) == 1


def real_scan(realdata, subject, times, folder):
    echoes = []
    for echo, time in enumerate(times, start=1):
        stem = realdata / f"sub-{subject}" / "anat" / f"sub-{subject}_echo-{echo}_part-"
        echoes.append(
            {
                "echo": echo,
                "echo_time_s": time,
                "magnitude": f"{stem}mag_MEGRE.nii.gz",
                "phase": f"{stem}phase_MEGRE.nii.gz",
                "phase_sidecar": {"Units": "rad"},
            }
        )
    path = folder / "scan.json"
    path.write_text(json.dumps({"id": subject, "echoes": echoes}))
    return path


def test_real_head_is_right_handed_by_its_own_field(realdata, tmp_path):
    result = run(real_scan(realdata, "philips3mm", (0.0023, 0.0046), tmp_path))
    report = read_json(result.outputs.out_report)
    assert report["polarity_sign"] == 1
    assert report["polarity_evidence"] == "head"
    assert report["polarity_correlation"] > 0.4
    assert report["scaling_rule"] == "radians"


def test_veins_of_a_real_crop_are_paramagnetic_and_dark(realdata, tmp_path):
    result = run(real_scan(realdata, "romeocrop", (0.004, 0.008, 0.012), tmp_path))
    report = read_json(result.outputs.out_report)
    assert report["polarity_sign"] == 1
    assert report["polarity_correlation"] is None
    swi = read_volume(result.outputs.out_swi).data
    magnitude = read_volume(result.outputs.out_magnitude).data
    high = read_volume(result.outputs.out_highpass).data
    vein = (magnitude < np.percentile(magnitude, 3)) & (high > 0.3)
    assert vein.sum() > 200
    assert np.median(swi[vein]) < 0.6 * np.median(magnitude[vein])
    assert np.median(swi) > 0.75 * np.median(magnitude)
