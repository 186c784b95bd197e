"""Uploads as they arrive: multipart/form-data, written to disk chunk by chunk, with a cap on everything."""

import asyncio
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from robustbench_rkhs.nodes.limits import bytes_in_words
from robustbench_rkhs.runtime.sinks import for_line

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Names of files, and of models."""
PARTS = 16
"""Most parts of a form."""
FIELD = 1024
"""Most bytes of a field that is no file, and of the headers of a part."""
BLOCK = 1 << 20
"""Bytes that are written at a time."""


@dataclass
class Form:
    """What a form held."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


async def receive(request: Request, folder: Path, most: int, seconds: float) -> Form:
    """The form of this request; its files are in `folder`. Raises HTTPException: 400, 408, 413 or 415."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise HTTPException(415, "expected multipart/form-data with a boundary")
    stated = request.headers.get("content-length", "")
    if stated.isascii() and stated.isdigit() and int(stated[:20]) > most:
        raise HTTPException(413, f"the upload is larger than {bytes_in_words(most)}")
    reader = _Reader(folder, options[b"boundary"])
    try:
        async with asyncio.timeout(seconds):
            await _read(request, reader, most)
    except TimeoutError:
        raise HTTPException(408, f"the upload took longer than {seconds:g} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the upload was broken off") from None
    except FormParserError as error:
        raise HTTPException(400, f"the form cannot be read: {for_line(error)[:200]}") from None
    finally:
        reader.close()
    if not reader.ended:
        raise HTTPException(400, "the form ends before its last boundary")
    return reader.form


async def _read(request: Request, reader: "_Reader", most: int) -> None:
    got, block = 0, bytearray()
    async for chunk in request.stream():
        got += len(chunk)
        if got > most:
            raise HTTPException(413, f"the upload is larger than {bytes_in_words(most)}")
        block += chunk
        if len(block) >= BLOCK:
            await run_in_threadpool(reader.write, bytes(block))
            block.clear()
    await run_in_threadpool(reader.write, bytes(block))
    await run_in_threadpool(reader.finish)


class _Reader:
    """Writes each file of a form to a folder."""

    def __init__(self, folder: Path, boundary: bytes) -> None:
        self.folder, self.form, self.ended = folder, Form(), False
        self._parts, self._name, self._file = 0, "", b""
        self._header, self._value, self._headers = b"", b"", dict[bytes, bytes]()
        self._open: BinaryIO | None = None
        self._text = b""
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "headers_finished", "end")
        self._parser = MultipartParser(boundary, {f"on_{name}": getattr(self, f"_{name}") for name in names})  # type: ignore[arg-type]
        self.write, self.finish = self._parser.write, self._parser.finalize

    def close(self) -> None:
        """Close the file that is open, if any."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS:
            raise HTTPException(413, f"the form has more than {PARTS} parts")
        self._headers, self._text = {}, b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header = _capped(self._header + data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value = _capped(self._value + data[start:end])

    def _header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" not in options:
            return
        name = options[b"filename"].decode("utf-8", "replace")
        if not name:
            return  # a file field of a page that was left empty
        if not NAME.fullmatch(name):
            raise HTTPException(422, f"the file name {for_line(name)[:80]!r} is not of letters, digits, _ . - (64 at most)")
        path = self.folder / name
        try:
            self._open = path.open("xb")
        except FileExistsError:
            raise HTTPException(422, f"the file {name!r} was sent twice") from None
        self.form.files.append(path)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._open is not None:
            self._open.write(data[start:end])
        else:
            self._text = _capped(self._text + data[start:end])

    def _part_end(self) -> None:
        if self._open is not None:
            self.close()
        elif self._text or self._name:
            self.form.fields[self._name] = self._text.decode("utf-8", "replace")

    def _end(self) -> None:
        self.ended = True


def _capped(text: bytes) -> bytes:
    if len(text) > FIELD:
        raise HTTPException(413, f"a field or header of the form is longer than {FIELD} bytes")
    return text
