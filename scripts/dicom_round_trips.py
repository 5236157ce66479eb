#!/usr/bin/env python
"""Write the phantom as DICOM in every direction and patient position, read it with other programs, and make a table.

    python scripts/dicom_round_trips.py [--dcmqi PATH/segimage2itkimage] > docs/dicom_round_trips.md

dcmqi (``pip install dcmqi``, in an environment of its own) and plastimatch (Debian package) are left out where they are
not installed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
warnings.simplefilter("ignore")

from medunet.errors import GeometryError  # noqa: E402
from tests import dicom_round_trip as trip  # noqa: E402

HEAD = """# Round trips of DICOM results

Written by `scripts/dicom_round_trips.py` with highdicom {highdicom}, SimpleITK {SimpleITK}, pydicom {pydicom}{more}.

A phantom without any symmetry (no flip and no exchange of axes gives it back) is written on series of every direction
and patient position and read by other programs. A tick means: the same voxels at the same places in the patient, to
0.02 mm, for both of its classes. `tests/test_dicom_round_trip.py` holds all of it but dcmqi.

- *frames*: each frame placed by its own position, as viewers do (pydicom); *images*: contours filled on the images that
  SimpleITK reads. SimpleITK takes a file of one class, since it reads all frames of a file as one volume.
- *sheared*: the reader knows upright volumes only. The planes of a tilted series lie where they were acquired; a
  program that makes an upright volume of them moves them. Those that place each frame are right.
- RTSTRUCT is written for axial planes only; other directions are refused with that reason.

"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dcmqi", default=shutil.which("segimage2itkimage"))
    dcmqi = parser.parse_args().dcmqi
    seg = {"highdicom": trip.with_highdicom, "frames": trip.with_frames}
    readers = {"BINARY": {**seg, "SimpleITK": trip.with_simpleitk}, "LABELMAP": dict(seg)}
    readers["RTSTRUCT"] = {"images": trip.with_images}
    more = ""
    if dcmqi:
        readers["BINARY"]["dcmqi"] = readers["LABELMAP"]["dcmqi"] = trip.with_dcmqi(dcmqi)
        more += ", dcmqi"
    if shutil.which("plastimatch"):
        readers["RTSTRUCT"]["plastimatch"] = trip.with_plastimatch("plastimatch")
        more += ", plastimatch"
    print(HEAD.format(more=more, **{name: version(name) for name in ("highdicom", "SimpleITK", "pydicom")}))
    columns = [f"{kind} {reader}" for kind, own in readers.items() for reader in own]
    print(f"| series | position | verdict | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 3)}")
    for stack in trip.STACKS:
        for position in trip.POSITIONS:
            with tempfile.TemporaryDirectory() as folder:
                print(row(Path(folder), stack, position, readers), flush=True)


def row(folder: Path, stack: str, position: str, readers: dict) -> str:
    """One line of the table."""
    series = trip.make(folder / "images", stack, position)
    cells = [stack, position, series.verdict.state]
    for kind, own in readers.items():
        path = folder / f"{kind}.dcm"
        try:
            expected = trip.write(path, series, kind)
        except GeometryError:
            cells += ["refused"] * len(own)
            continue
        cells += [verdict(trip.equal(read(path, series), expected), name, stack) for name, read in own.items()]
    return f"| {' | '.join(cells)} |"


def verdict(good: bool, reader: str, stack: str) -> str:
    """A tick, the known limit of a reader, or a failure."""
    if good:
        return "✓"
    return "sheared" if stack == "tilted" and reader in ("dcmqi", "SimpleITK") else "**differs**"


if __name__ == "__main__":
    main()
