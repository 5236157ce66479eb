"""A real PACS for the tests: Orthanc on loopback, and the ways in which a hospital reaches one."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

STARTS_WITHIN = 20.0  # seconds
HOST, TITLE, OUR_TITLE, MODALITY = "127.0.0.1", "PACS", "MEDUNET", "medunet"
PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins", "/usr/lib/orthanc")
UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
SOP_CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
    "LABELMAP": "1.2.840.10008.5.1.4.1.1.66.7",
    "RTSTRUCT": "1.2.840.10008.5.1.4.1.1.481.3",
    "SR": "1.2.840.10008.5.1.4.1.1.88.34",
}

Refused = frozenset[str]
"""SOP classes that the PACS would not send in this way; what is not refused has to come."""


class Identity(NamedTuple):
    """What a PACS files an object under; an SR has no frame of reference."""

    study: str
    series: str
    instance: str
    frame_of_reference: str


@dataclass(frozen=True)
class Pacs:
    """A running Orthanc: its ports, and whether it speaks DICOMweb."""

    http: int
    dicom: int
    web: bool

    def request(
        self, method: str, path: str, body: bytes | None = None, *, timeout: float = 30.0, **headers: str
    ) -> tuple[bytes, str]:
        """The body and content type of a good answer within `timeout` seconds; no proxy stands between."""
        connection = http.client.HTTPConnection(HOST, self.http, timeout=timeout)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        assert answer.status == 200, f"{method} {path}: {answer.status} {content[:500]!r}"
        return content, answer.headers.get("Content-Type", "")

    def json(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The same for JSON, both ways."""
        content, _ = self.request(method, path, None if body is None else json.dumps(body).encode(), **headers)
        return json.loads(content or b"null")


# --- the server --------------------------------------------------------------------------------------------------


def orthanc() -> str | None:
    """The program, which Debian keeps in a folder that is not on every PATH."""
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def running(folder: Path) -> Iterator[Pacs]:
    """Orthanc with its storage in `folder`; stopped at the end, whatever happened in between."""
    for attempt in range(3):  # a port that was free may be taken before Orthanc has it
        process, pacs = _start(folder / str(attempt))
        try:
            if _answers(process, pacs):
                yield pacs
                return
        finally:
            _stop(process)
    raise RuntimeError(f"Orthanc did not start: {(folder / '2' / 'log.txt').read_text(errors='replace')[-2000:]}")


def _start(folder: Path) -> tuple[subprocess.Popen[bytes], Pacs]:
    folder.mkdir(parents=True)
    web = next((p for place in PLUGIN_FOLDERS for p in sorted(Path(place).glob("libOrthancDicomWeb.so*"))), None)
    pacs = Pacs(*_free_ports(2), web is not None)
    (folder / "orthanc.json").write_text(json.dumps(_configuration(folder, pacs, web)))
    program = orthanc()
    assert program is not None
    guard = shutil.which("setpriv")  # so that it also ends where a killed test process cannot end it
    command = [*([guard, "--pdeathsig", "KILL"] if guard else []), program, str(folder / "orthanc.json")]
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT), pacs


def _configuration(folder: Path, pacs: Pacs, web: Path | None) -> dict[str, Any]:
    """Loopback only: HTTP refuses other hosts, and DICOM is spoken with the one modality that is known, here.

    Orthanc 1.10 does not know Label Map Segmentation Storage and refuses it in C-STORE, as many systems do; what it
    does not know is let in here.
    """
    known = {"AET": OUR_TITLE, "Host": HOST, "Port": 1}  # C-MOVE tells the port when it has one
    never = {f"DicomAlwaysAllow{verb}": False for verb in ("Echo", "Find", "Get", "Move", "Store")}
    return {
        "Name": "medunet-tests", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": pacs.http, "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "WebDavEnabled": False,
        "DicomPort": pacs.dicom, "DicomAet": TITLE, "DicomCheckCalledAet": True, "DicomCheckModalityHost": True,
        "DicomModalities": {MODALITY: known}, **never, "UnknownSopClassAccepted": True,
        "Plugins": [str(web)] if web else [], "DicomWeb": {"Enable": web is not None, "Root": "/dicom-web/"},
    }  # fmt: skip


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has, all held until all are known so that they differ."""
    held = [socket.create_server((HOST, 0)) for _ in range(count)]
    try:
        return [s.getsockname()[1] for s in held]
    finally:
        for s in held:
            s.close()


def _answers(process: subprocess.Popen[bytes], pacs: Pacs) -> bool:
    end = time.monotonic() + STARTS_WITHIN
    while process.poll() is None and time.monotonic() < end:
        try:
            return bool(json.loads(pacs.request("GET", "/system", timeout=2.0)[0])["DicomPort"] == pacs.dicom)
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(15)


# --- DIMSE -------------------------------------------------------------------------------------------------------


@contextmanager
def association(pacs: Pacs, contexts: dict[str, Any], **options: Any) -> Iterator[Association]:
    """An association for SOP classes with their transfer syntaxes; all have to be accepted."""
    entity = AE(OUR_TITLE)
    for sop_class, syntaxes in contexts.items():
        entity.add_requested_context(sop_class, syntaxes)
    opened = entity.associate(HOST, pacs.dicom, ae_title=TITLE, **options)
    assert opened.is_established
    try:
        assert not opened.rejected_contexts, [c.abstract_syntax for c in opened.rejected_contexts]
        yield opened
    finally:
        opened.release()


def c_store(pacs: Pacs, files: list[Path]) -> None:
    """Each file as it is, in its own transfer syntax."""
    datasets = [dcmread(file) for file in files]
    contexts = {d.SOPClassUID: d.file_meta.TransferSyntaxUID for d in datasets}
    with association(pacs, contexts) as opened:
        for dataset in datasets:
            assert opened.send_c_store(dataset).Status == 0


def c_find(pacs: Pacs, study: str) -> set[Identity]:
    """Series of the study, then the images of each."""
    found = set()
    with association(pacs, {StudyRootQueryRetrieveInformationModelFind: UNCOMPRESSED}) as opened:
        for series in _matches(opened, "SERIES", StudyInstanceUID=study, SeriesInstanceUID=""):
            wanted = {"StudyInstanceUID": study, "SeriesInstanceUID": series.SeriesInstanceUID}
            for image in _matches(opened, "IMAGE", **wanted, SOPInstanceUID="", FrameOfReferenceUID=""):
                frame = image.get("FrameOfReferenceUID") or ""
                found.add(Identity(image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID, frame))
    return found


def _matches(opened: Association, level: str, **keys: str) -> list[Dataset]:
    answers = list(opened.send_c_find(_query(level, **keys), StudyRootQueryRetrieveInformationModelFind))
    assert answers[-1][0].Status == 0
    return [match for _, match in answers if match is not None]


def _query(level: str, **keys: str) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    return query


def _receive(folder: Path) -> tuple[Any, Callable[[Any], int]]:
    """A handler that writes what arrives, byte for byte."""

    def handle(event: Any) -> int:
        (folder / f"{event.request.AffectedSOPInstanceUID}.dcm").write_bytes(event.encoded_dataset())
        return 0

    return evt.EVT_C_STORE, handle


def c_get(pacs: Pacs, study: str, folder: Path, syntaxes: dict[str, UID] | None = None) -> Refused:
    """The whole study over our own association; `syntaxes` are the ones that we take, by kind, in place of two.

    Orthanc 1.10 takes a class that it does not know, and then will not be the sender of it (PS3.7 D.3.3.4).
    """
    model = StudyRootQueryRetrieveInformationModelGet
    taken = {uid: (syntaxes or {}).get(kind, UNCOMPRESSED) for kind, uid in SOP_CLASSES.items()}
    roles = [build_role(uid, scp_role=True) for uid in SOP_CLASSES.values()]
    with association(pacs, {model: UNCOMPRESSED, **taken}, ext_neg=roles, evt_handlers=[_receive(folder)]) as opened:
        refused = {str(c.abstract_syntax) for c in opened.accepted_contexts if not c.as_scp} - {model}
        answers = [status for status, _ in opened.send_c_get(_query("STUDY", StudyInstanceUID=study), model)]
    assert refused <= {SOP_CLASSES["LABELMAP"]}
    if not refused:
        _complete(answers)
    return frozenset(refused)


def _complete(answers: list[Dataset]) -> None:
    assert answers[-1].Status == 0
    assert not answers[-1].get("NumberOfFailedSuboperations")


def c_move(pacs: Pacs, study: str, folder: Path) -> Refused:
    """The whole study, which the PACS sends to us as to any workstation that it knows."""
    entity, model = AE(OUR_TITLE), StudyRootQueryRetrieveInformationModelMove
    for uid in SOP_CLASSES.values():
        entity.add_supported_context(uid, UNCOMPRESSED)
    server = entity.start_server((HOST, 0), block=False, evt_handlers=[_receive(folder)])
    try:
        port = server.socket.getsockname()[1]
        pacs.request("PUT", f"/modalities/{MODALITY}", json.dumps([OUR_TITLE, HOST, port]).encode())
        with association(pacs, {model: UNCOMPRESSED}) as opened:
            query = _query("STUDY", StudyInstanceUID=study)
            answers = [status for status, _ in opened.send_c_move(query, OUR_TITLE, model)]
    finally:
        server.shutdown()
    _complete(answers)
    return Refused()


# --- DICOMweb ----------------------------------------------------------------------------------------------------


def stow(pacs: Pacs, files: list[Path]) -> None:
    """STOW-RS (PS3.18 10.5): all in one request."""
    head = b"--medunet\r\nContent-Type: application/dicom\r\n\r\n"
    body = b"".join(head + file.read_bytes() + b"\r\n" for file in files) + b"--medunet--\r\n"
    kind = 'multipart/related; type="application/dicom"; boundary=medunet'
    content, _ = pacs.request("POST", "/dicom-web/studies", body, Content_Type=kind, Accept="application/dicom+json")
    answer = json.loads(content)
    assert not answer.get("00081198", {}).get("Value"), answer  # Failed SOP Sequence
    assert len(answer["00081199"]["Value"]) == len(files)  # Referenced SOP Sequence


def qido(pacs: Pacs, study: str) -> set[Identity]:
    """QIDO-RS (PS3.18 10.6) for the instances of a study."""
    path = f"/dicom-web/instances?StudyInstanceUID={study}&includefield=FrameOfReferenceUID"
    tags = ("0020000D", "0020000E", "00080018", "00200052")
    found = [Dataset.from_json(item) for item in pacs.json("GET", path, Accept="application/dicom+json")]
    return {Identity(*(str(item[tag].value) if tag in item else "" for tag in tags)) for item in found}


def wado(pacs: Pacs, study: str, folder: Path) -> Refused:
    """WADO-RS (PS3.18 10.4): the whole study in one answer."""
    accept = 'multipart/related; type="application/dicom"'
    body, kind = pacs.request("GET", f"/dicom-web/studies/{study}", Accept=accept)
    boundary = kind.split("boundary=")[1].split(";")[0].strip('"').encode()
    for part in body.split(b"--" + boundary)[1:-1]:
        content = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        _keep(folder, content)
    return Refused()


# --- Orthanc's own REST ------------------------------------------------------------------------------------------


def rest_store(pacs: Pacs, files: list[Path]) -> None:
    """``POST /instances``."""
    for file in files:
        answer, _ = pacs.request("POST", "/instances", file.read_bytes(), Content_Type="application/dicom")
        assert json.loads(answer)["Status"] == "Success"


def _instances(pacs: Pacs, **query: str) -> list[str]:
    found = pacs.json("POST", "/tools/find", {"Level": "Instance", "Query": query})
    assert isinstance(found, list)
    return found


def rest_find(pacs: Pacs, study: str) -> set[Identity]:
    """``POST /tools/find``, then the header of each instance."""
    words = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
    headers = [
        pacs.json("GET", f"/instances/{name}/simplified-tags") for name in _instances(pacs, StudyInstanceUID=study)
    ]
    return {Identity(*(header.get(word, "") for word in words)) for header in headers}


def rest_retrieve(pacs: Pacs, study: str, folder: Path) -> Refused:
    """``GET /instances/{id}/file``: the file as it was stored."""
    for name in _instances(pacs, StudyInstanceUID=study):
        _keep(folder, pacs.request("GET", f"/instances/{name}/file")[0])
    return Refused()


def rest_compressed(pacs: Pacs, series: str, folder: Path, syntax: UID) -> None:
    """``POST /instances/{id}/modify``: the images of a series, nothing changed but the transfer syntax."""
    uids = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
    wish = json.dumps({"Transcode": syntax, "Keep": uids, "Force": True}).encode()
    for name in _instances(pacs, SeriesInstanceUID=series):
        _keep(folder, pacs.request("POST", f"/instances/{name}/modify", wish)[0])


def _keep(folder: Path, content: bytes) -> None:
    temporary = folder / "part"
    temporary.write_bytes(content)
    temporary.rename(folder / f"{dcmread(temporary, stop_before_pixels=True).SOPInstanceUID}.dcm")


WEB = ("STOW-RS", "QIDO-RS", "WADO-RS")
STORE: dict[str, Callable[[Pacs, list[Path]], None]] = {"C-STORE": c_store, "STOW-RS": stow, "REST": rest_store}
FIND: dict[str, Callable[[Pacs, str], set[Identity]]] = {"C-FIND": c_find, "QIDO-RS": qido, "REST": rest_find}
RETRIEVE: dict[str, Callable[[Pacs, str, Path], Refused]] = {
    "C-GET": c_get,
    "C-MOVE": c_move,
    "WADO-RS": wado,
    "REST": rest_retrieve,
}
