"""What can be wrong with the tars of a WebDataset that is to be prepared."""

import gzip
import io
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.faults.world import (
    KEPT,
    LEFT_OUT,
    NUM_PICTURES,
    REFUSED,
    Answer,
    caption,
    encoded,
    flat,
    plain_json,
    run_preparation,
    several,
)
from benchmarks.harness import Fault
from data_prep import webdataset

Member = tuple[str, bytes] | tarfile.TarInfo


def members() -> list[Member]:
    """The set as img2dataset lays it out."""
    found: list[Member] = []
    for n in range(NUM_PICTURES):
        found += [
            (f"{n:09d}.jpg", encoded(flat(n), "JPEG", quality=95)),
            (f"{n:09d}.txt", caption(n).encode()),
            (f"{n:09d}.json", plain_json({"caption": caption(n), "status": "success"}).encode()),
        ]
    return found


def pack(found: list[Member]) -> bytes:
    """A tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in found:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                header = tarfile.TarInfo(member[0])
                header.size = len(member[1])
                tar.addfile(header, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(kind: bytes, name: str = "000000099.jpg") -> tarfile.TarInfo:
    """A member that is no plain file."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


def run_tar(data: bytes, culprit: str, root: Path, _trials: int = 1) -> Answer:
    """Prepares the set of one tar."""
    root.mkdir(exist_ok=True)
    (root / "00000.tar").write_bytes(data)
    options = webdataset.Options(source=str(root), out=str(root / "out"), max_skip_share=1.0, num_workers=0)
    return run_preparation(
        lambda: webdataset.collect(webdataset.find_tars(options.source)), options, culprit=culprit
    )


def run_beside(data: bytes, root: Path, _trials: int = 1) -> Answer:
    """The whole tar and another one beside it."""
    (root / "00001.tar").write_bytes(data)
    return run_tar(pack(members()), "00001.tar", root)


def edited(edit: Callable[[list[Member]], list[Member]]) -> bytes:
    return pack(edit(members()))


def cut(root: Path, trials: int) -> Answer:
    """The tar cut at places from its first to its last byte that counts."""
    whole = pack(members())
    end = len(whole.rstrip(b"\0"))
    offsets = [end * (trial + 1) // (trials + 1) for trial in range(trials)]
    return several([run_tar(whole[:offset], "", root / str(trial)) for trial, offset in enumerate(offsets)])


def without(suffix: str) -> Callable[[list[Member]], list[Member]]:
    return lambda found: [member for member in found if member[0] != f"{3:09d}.{suffix}"]


TARS: dict[str, tuple[bytes, str, str]] = {
    "empty file": (b"", "", REFUSED),
    "tar of no members": (pack([]), "", REFUSED),
    "html page named .tar": (b"<!DOCTYPE html>" + b" " * 600, "", REFUSED),
    "gzip named .tar": (gzip.compress(pack(members())), "", REFUSED),
    "picture with a dotted name": (
        edited(lambda found: [*found, ("9.b.jpg", b"x"), ("9.b.txt", b"x")]),
        "9.b.jpg",
        LEFT_OUT,
    ),
    "extension in capitals": (
        edited(lambda found: [(f"{3:09d}.JPG", found[9][1]) if m is found[9] else m for m in found]),
        "",
        KEPT,
    ),
    "picture missing": (edited(without("jpg")), f"{3:09d}", LEFT_OUT),
    "captions missing": (
        edited(lambda found: [m for m in found if not (m[0].startswith(f"{3:09d}") and "jpg" not in m[0])]),
        f"{3:09d}",
        LEFT_OUT,
    ),
    "txt missing, caption in the json": (edited(without("txt")), f"{3:09d}", KEPT),
    "json that is none": (edited(lambda found: [*found, ("9.json", b"{"), ("9.txt", b"x")]), "9", LEFT_OUT),
    "sample twice": (edited(lambda found: [*found, *found[9:12]]), f"{3:09d}", LEFT_OUT),
    "members not side by side": (edited(lambda found: found[::3] + found[1::3] + found[2::3]), "", KEPT),
    "two pictures of one sample": (
        edited(lambda found: [*found, (f"{3:09d}.png", encoded(flat(3), "PNG"))]),
        f"{3:09d}",
        LEFT_OUT,
    ),
    "symbolic link": (edited(lambda found: [*found, special(tarfile.SYMTYPE)]), "99", LEFT_OUT),
    "hard link": (edited(lambda found: [*found, special(tarfile.LNKTYPE)]), "99", LEFT_OUT),
    "device": (edited(lambda found: [*found, special(tarfile.CHRTYPE)]), "99", LEFT_OUT),
    "name with ..": (edited(lambda found: [*found, ("../x.jpg", b"x")]), "x.jpg", LEFT_OUT),
    "absolute name": (edited(lambda found: [*found, ("/tmp/x.jpg", b"x")]), "x.jpg", LEFT_OUT),
    "pickle in a sample": (edited(lambda found: [*found, (f"{3:09d}.pkl", b"cos\nsystem\n.")]), "", KEPT),
}

FOLDERS = pack([special(tarfile.DIRTYPE, "a"), special(tarfile.DIRTYPE, "b")])

FAULTS = [
    Fault(area="tars", name="no members, beside others", answer=LEFT_OUT, run=partial(run_beside, pack([]))),
    Fault(
        area="tars", name="folders alone, beside others", answer=LEFT_OUT, run=partial(run_beside, FOLDERS)
    ),
    *(
        Fault(area="tars", name=name, answer=answer, run=partial(run_tar, data, culprit))
        for name, (data, culprit, answer) in TARS.items()
    ),
    Fault(area="tars", name="cut", answer=REFUSED, run=cut),
]
