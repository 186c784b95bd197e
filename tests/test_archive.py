"""A bundle as one file: what an honest sender packs comes out as it was; nothing hostile is written anywhere."""

import io
import stat
import tarfile
import zipfile
import zlib

import pytest

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.submission import archive
from robustbench_rkhs.submission.archive import ENTRIES, unpack, unpack_alone

HONEST = {"submission.yaml": b"format: 1\n", "mine/config.json": b"{}", "mine/model.safetensors": b"x" * 3000}
MOST = 100_000


def zipped(path, files, **more):
    """A zip; a file whose content is an int is a member of that mode."""
    with zipfile.ZipFile(path, "w", more.get("method", zipfile.ZIP_DEFLATED)) as opened:
        for name, content in files:
            info = zipfile.ZipInfo(name)
            info.compress_type = opened.compression
            if isinstance(content, int):
                info.external_attr, content = content << 16, b"/etc/passwd"
            opened.writestr(info, content)
    return path


def tarred(path, files, mode="w:gz"):
    """A tar; a file whose content is a dictionary has these fields."""
    with tarfile.open(path, mode) as opened:
        for name, content in files:
            info, more = tarfile.TarInfo(name), content if isinstance(content, dict) else {}
            content = b"" if more else content
            info.size = len(content)
            for key, value in more.items():
                setattr(info, key, value)
            opened.addfile(info, io.BytesIO(content))
    return path


def inside(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path):
    """An empty folder, in one that must stay as it is."""
    found = tmp_path / "apart" / "folder"
    found.mkdir(parents=True)
    yield found
    assert sorted(found.parent.iterdir()) == [found] and not any(path.is_symlink() for path in found.rglob("*"))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
@pytest.mark.parametrize("top", ["", "./", "bundle/", "./any.name/"])
def test_what_was_packed_comes_out(tmp_path, folder, name, top):
    files = [(f"{top}{path}", content) for path, content in HONEST.items()]
    beside = [("__MACOSX/._submission.yaml", b"x"), (f"{top}.DS_Store", b"x"), (f"{top}mine/._config.json", b"x")]
    if name == "a.zip":
        zipped(tmp_path / name, [(f"{top}mine/", b""), *files, *beside])
    else:
        folders = [(one, {"type": tarfile.DIRTYPE}) for one in (top, f"{top}mine/") if one]
        tarred(tmp_path / name, [*folders, *files, *beside], "w" if name == "a.tar" else "w:gz")
    unpack(tmp_path / name, folder, MOST)
    assert inside(folder) == HONEST


HOSTILE = {
    "above": ("../out", b"x", "the path '../out'"),
    "above within": ("mine/../../out", b"x", "the path"),
    "absolute": ("/tmp/out", b"x", "the path '/tmp/out'"),
    "a drive": ("C:\\out", b"x", "the path"),
    "backslashes": ("..\\out", b"x", "the path"),
    "hidden": (".ssh/authorized_keys", b"x", "the path"),
    "deep": ("a/b/c/d", b"x", "at most 3 names"),
    "long": ("a" * 65, b"x", "the path"),
    "empty": ("mine//x", b"x", "the path"),
    "a control character": ("mine/\u202ex", b"x", "\\u202e"),
    "twice": ("submission.yaml", b"x", "is in it twice"),
    "twice, by its way": ("./submission.yaml", b"x", "is in it twice"),
    "twice, but for case": ("SUBMISSION.yaml", b"x", "differ in case alone"),
    "a file as a folder": ("submission.yaml/x", b"x", "cannot be read"),
}


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_paths_that_lead_elsewhere_or_come_twice_are_refused(tmp_path, folder, kind, name):
    path, content, line = HOSTILE[name]
    make = zipped if kind == "zip" else tarred
    made = make(tmp_path / ("a.zip" if kind == "zip" else "a.tar.gz"), [*HONEST.items(), (path, content)])
    with pytest.raises(UserError) as refused:
        unpack(made, folder, MOST)
    assert line in str(refused.value) and str(refused.value).count("\n") == 0
    assert inside(folder).items() <= HONEST.items()


@pytest.mark.parametrize(
    "more",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc"},
        {"type": tarfile.LNKTYPE, "linkname": "submission.yaml"},
        {"type": tarfile.LNKTYPE, "linkname": "../../../etc/passwd"},
        {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.CONTTYPE},
        {"type": tarfile.GNUTYPE_SPARSE},
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, folder, more):
    made = tarred(tmp_path / "a.tar", [("mine", more), ("mine/x", b"x")], "w")
    with pytest.raises(UserError, match=r"a link, a device or sparse|cannot be read"):
        unpack(made, folder, MOST)
    assert inside(folder) == {}


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o600, stat.S_IFCHR | 0o600, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip_are_refused(tmp_path, folder, mode):
    with pytest.raises(UserError, match="a link, a device or encrypted"):
        unpack(zipped(tmp_path / "a.zip", [("mine", mode), ("mine/x", b"x")]), folder, MOST)
    assert inside(folder) == {}


def encrypted(path):
    """A zip that says that its first file is encrypted."""
    content = bytearray(zipped(path, HONEST.items()).read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(signature) + flags] |= 1
    path.write_bytes(content)
    return path


def overlapping(path):
    """A zip whose directory names one large file many times: its parts lie over each other."""
    zipped(path, [("x0", b"\0" * 50_000)])
    content = path.read_bytes()
    begin, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    entry, tail = content[begin:end], bytearray(content[end:])
    tail[8:12], tail[12:16] = (9).to_bytes(2, "little") * 2, (9 * len(entry)).to_bytes(4, "little")
    entries = b"".join(entry.replace(b"x0", b"x%d" % number) for number in range(9))
    path.write_bytes(content[:begin] + entries + tail)
    return path


def small_lie(path):
    """A zip whose file is larger than it says."""
    content = bytearray(zipped(path, [("submission.yaml", b"\0" * 1_000_000)]).read_bytes())
    for signature, place in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at = content.index(signature) + place
        content[at : at + 4] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    return path


def large_lie(path):
    """A tar that says that its only file has 8 GiB, and ends."""
    info = tarfile.TarInfo("submission.yaml")
    info.size = 8 << 30
    path.write_bytes(info.tobuf() + b"x" * 512)
    return path


def cut(path):
    path.write_bytes(tarred(path, HONEST.items(), "w").read_bytes()[:4000])
    return path


def damaged(path):
    """A zip whose content is not of its checksum."""
    content = bytearray(zipped(path, HONEST.items(), method=zipfile.ZIP_STORED).read_bytes())
    content[content.index(b"format")] ^= 1
    path.write_bytes(content)
    return path


def wrapped(path):
    """A gzip of a gzip of a tar."""
    content = tarred(path, HONEST.items()).read_bytes()
    press = zlib.compressobj(wbits=31)
    path.write_bytes(press.compress(content) + press.flush())
    return path


@pytest.mark.parametrize(
    ("name", "make", "line"),
    [
        ("a.zip", lambda path: zipped(path, [("submission.yaml", b"\0" * (50 * MOST))]), f"more than {MOST:,} bytes"),
        ("a.tgz", lambda path: tarred(path, [("submission.yaml", b"\0" * (50 * MOST))]), f"more than {MOST:,} bytes"),
        ("a.zip", lambda path: zipped(path, [(f"x{n}", b"\0" * (MOST // 10)) for n in range(11)]), f"more than {MOST:,} bytes"),
        ("a.zip", lambda path: zipped(path, [(f"x{n}/", b"") for n in range(ENTRIES + 1)]), f"more than {ENTRIES} entries"),
        ("a.tar", lambda path: tarred(path, [(f"x{n}", b"") for n in range(ENTRIES + 1)], "w"), f"more than {ENTRIES} entries"),
        ("a.zip", overlapping, "cannot be read"),
        ("a.zip", small_lie, "cannot be read"),
        ("a.tar", large_lie, "cannot be read"),
        ("a.tar", cut, "cannot be read"),
        ("a.zip", damaged, "cannot be read"),
        ("a.tgz", wrapped, "cannot be read"),
        ("a.zip", encrypted, "encrypted"),
        ("a.zip", lambda path: path.write_bytes(b"PK"), "cannot be read"),
        ("a.tar", lambda path: path.write_bytes(b""), "cannot be read"),
        ("a.zip", lambda path: tarred(path, HONEST.items()), "cannot be read"),
        ("a.zip", lambda path: zipped(path, [("bundle/mine/config.json", b"{}")]), "no submission.yaml in it"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_bombs_lies_and_damage_are_refused(tmp_path, folder, name, make, line):
    make(tmp_path / name)
    with pytest.raises(UserError) as refused:
        unpack(tmp_path / name, folder, MOST)
    assert line in str(refused.value)
    assert sum(len(content) for content in inside(folder).values()) <= MOST + archive.BLOCK


def test_a_small_tar_that_ends_with_a_zip_is_a_tar(tmp_path, folder):
    zipped(tmp_path / "adversarials.npz", [("images.npy", b"x")])
    files = {"submission.yaml": b"format: 1\n", "adversarials.npz": (tmp_path / "adversarials.npz").read_bytes()}
    unpack(tarred(tmp_path / "a.tar", files.items(), "w"), folder, MOST)
    assert inside(folder) == files


def test_the_process_that_unpacks_says_what_it_refuses(tmp_path, folder):
    unpack_alone(zipped(tmp_path / "a.zip", HONEST.items()), folder, MOST)
    assert inside(folder) == HONEST
    with pytest.raises(UserError, match=r"the path '\.\./out'"):
        unpack_alone(zipped(tmp_path / "b.zip", [("../out", b"x")]), folder, MOST)
