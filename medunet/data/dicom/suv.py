"""PET to SUVbw: activity concentration over injected dose per body weight, at the time of injection.

SUVbw = activity (Bq/ml) * weight (g) / dose (Bq), the dose decayed to the reference time of the image (PS3.3 C.8.9.1;
QIBA "SUV vendor-neutral pseudo-code"). What the header does not say is refused and never assumed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from medunet.data.dicom.files import quiet
from medunet.data.dicom.frames import Frame
from medunet.data.dicom.header import GE_SCAN_TIME, PHILIPS_ACTIVITY, PHILIPS_SUV

_LONGEST = timedelta(hours=12)
_OFFSET = re.compile(r"[+-]\d{4}$")


class SuvError(ValueError):
    """Why a PET series cannot be brought to SUV."""


def suv_factor(frames: Sequence[Frame]) -> tuple[float, str]:
    """What rescaled pixel values are multiplied with to become SUVbw, and in words how it was found.

    Raises:
        SuvError: the header does not allow it; says what is missing.
    """
    with quiet():
        header = frames[0].file.header
        units = str(header.get("Units") or "").upper()
        if units == "GML":
            kind = str(header.get("SUVType") or "BW").upper()
            if kind != "BW":
                raise SuvError(f"its values are SUV by {kind}, not by body weight")
            return 1.0, "PET values are SUVbw as stored (Units GML)"
        if units == "CNTS":
            return _philips(frames)
        if units != "BQML":
            raise SuvError(
                f"its Units are {units or 'missing'}; SUVbw needs BQML, GML, or Philips CNTS with its factor"
            )
        return _body_weight_factor(frames)


def _philips(frames: Sequence[Frame]) -> tuple[float, str]:
    """Philips stores counts and a private factor to SUV, or to Bq/ml; 0 means that there is none."""
    header = frames[0].file.header
    factor = _number(header.private(PHILIPS_SUV))
    if factor:
        return factor, f"PET counts times the Philips SUV factor {factor:.6g}"
    activity = _number(header.private(PHILIPS_ACTIVITY))
    if activity:
        suv, words = _body_weight_factor(frames)
        return suv * activity, f"{words}; counts times the Philips activity factor {activity:.6g}"
    raise SuvError("its Units are CNTS and the Philips factors (7053,1000) and (7053,1009) are missing or 0")


def _body_weight_factor(frames: Sequence[Frame]) -> tuple[float, str]:
    header = frames[0].file.header
    corrections = {str(c).upper() for c in _listed(header.get("CorrectedImage"))}
    if not {"ATTN", "DECY"} <= corrections:
        raise SuvError(f"CorrectedImage is {', '.join(sorted(corrections)) or 'missing'}; SUV needs ATTN and DECY")
    weight = _positive(header, "PatientWeight", "kg")
    if not 0.5 <= weight <= 650:
        raise SuvError(f"PatientWeight is {weight:g} kg")
    items = header.get("RadiopharmaceuticalInformationSequence") or []
    if len(items) != 1:
        raise SuvError(f"RadiopharmaceuticalInformationSequence has {len(items)} items, one is needed")
    dose = _positive(items[0], "RadionuclideTotalDose", "Bq")
    if dose < 1e5:
        raise SuvError(f"RadionuclideTotalDose is {dose:g} Bq, which looks like MBq")
    decay = str(header.get("DecayCorrection") or "").upper()
    if decay == "ADMIN":
        return weight * 1000 / dose, f"PET Bq/ml to SUVbw: {weight:g} kg, {dose:.6g} Bq, corrected to the injection"
    if decay != "START":
        raise SuvError(f"DecayCorrection is {decay or 'missing'}; SUVbw needs START or ADMIN")
    half_life = _positive(items[0], "RadionuclideHalfLife", "s")
    start, source = _scan_start(frames)
    elapsed = _since_injection(items[0], start, str(header.get("TimezoneOffsetFromUTC") or ""))
    factor = weight * 1000 / (dose * math.exp(-math.log(2) * elapsed.total_seconds() / half_life))
    minutes = elapsed.total_seconds() / 60
    return factor, f"PET Bq/ml to SUVbw: {weight:g} kg, {dose:.6g} Bq, decayed {minutes:.1f} min until {source}"


def _scan_start(frames: Sequence[Frame]) -> tuple[datetime, str]:
    """The time that DecayCorrection START refers to.

    SeriesTime is it only where it is not later than every AcquisitionTime: a series that was processed again (Siemens,
    workstations) carries the time of that; GE keeps the true start in (0009,100D).
    """
    header = frames[0].file.header
    series = _moment(header.get("SeriesDate"), header.get("SeriesTime"))
    acquired = [_moment(_date(f.file.header), f.file.header.get("AcquisitionTime")) for f in frames]
    known = [moment for moment in acquired if moment is not None]
    if series is not None and known and series <= min(known):
        return series, "the series start"
    private = _date_time(header.private(GE_SCAN_TIME))
    if private is not None:
        return private, "GE's scan start (0009,100D)"
    if series is None:
        raise SuvError("SeriesDate or SeriesTime is missing")
    if not known:
        raise SuvError("AcquisitionTime is missing, so that the scan start cannot be checked")
    raise SuvError("SeriesTime is later than the acquisition (a series that was processed again): scan start unknown")


def _since_injection(item: Any, start: datetime, zone: str) -> timedelta:
    """`zone`: the images' own offset from UTC, in which `start` is."""
    stated = item.get("RadiopharmaceuticalStartDateTime")
    moment, own = _date_time(stated), _OFFSET.search(str(stated or "").strip())
    if moment is not None and own is not None:
        local = _moment(moment.strftime("%Y%m%d"), item.get("RadiopharmaceuticalStartTime"))
        if _OFFSET.fullmatch(zone.strip()):
            moment += _offset(zone.strip()) - _offset(own[0])
        elif local is None or abs(local - moment) > timedelta(minutes=1):
            raise SuvError(f"the injection is timed with the offset {own[0]} from UTC and the images are without one")
    if moment is None:
        moment = _moment(start.strftime("%Y%m%d"), item.get("RadiopharmaceuticalStartTime"))
        if moment is not None and moment > start:
            moment -= timedelta(days=1)  # a time without a date, injected before midnight
    if moment is None:
        raise SuvError("the time of injection (RadiopharmaceuticalStartTime) is missing")
    elapsed = start - moment
    if not timedelta(0) <= elapsed <= _LONGEST:
        raise SuvError(f"the injection at {moment} does not fit a scan at {start}")
    return elapsed


def _offset(zone: str) -> timedelta:
    """+HHMM or -HHMM."""
    return int(f"{zone[0]}1") * timedelta(hours=int(zone[1:3]), minutes=int(zone[3:5]))


def _date(header: Any) -> Any:
    return header.get("AcquisitionDate") or header.get("SeriesDate")


def _moment(date: Any, time: Any) -> datetime | None:
    if not date or not time:
        return None
    return _date_time(f"{date}{time}")


def _date_time(value: Any) -> datetime | None:
    """A DICOM DT without offset (PS3.5 section 6.2); None where it is none."""
    text = value.decode("ascii", "ignore") if isinstance(value, bytes) else str(value or "")
    digits, _, fraction = text.strip("\0 ").partition(".")
    digits = digits.split("+")[0].split("-")[0]
    try:
        moment = datetime.strptime(digits.ljust(14, "0")[:14], "%Y%m%d%H%M%S")
    except ValueError:
        return None
    decimals = re.match(r"\d+", fraction)
    return moment + timedelta(seconds=float(f"0.{decimals[0]}") if decimals else 0.0)


def _number(value: Any) -> float | None:
    """A private value as a number; None where it is missing, 0 or no number."""
    try:
        return float(value.decode("ascii") if isinstance(value, bytes) else value) or None
    except (TypeError, ValueError, UnicodeDecodeError):
        return None


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _positive(item: Any, keyword: str, unit: str) -> float:
    value = item.get(keyword)
    if value in (None, ""):
        raise SuvError(f"{keyword} is missing")
    number = float(value)
    if not number > 0 or not math.isfinite(number):
        raise SuvError(f"{keyword} is {number:g} {unit}")
    return number
