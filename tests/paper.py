"""Files of the kinds that people have, made for a test: what is in them is known to the letter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import docx
from pypdf import PdfReader, PdfWriter


def pdf(path: Path, pages: Sequence[Sequence[str]], *, title: str = "") -> Path:
    """Write a PDF by hand, a page for each list of ASCII lines; no line makes a page without text."""
    objects: dict[int, bytes] = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        3: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        4: f"<< /Title ({title}) >>".encode(),
    }
    kids: list[int] = []
    for lines in pages:
        number = max(objects) + 1
        shown = " ".join(f"({line}) Tj T*" for line in lines)
        stream = f"BT /F1 12 Tf 14 TL 72 700 Td {shown} ET".encode()
        objects[number] = b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream)
        objects[number + 1] = (
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            b"/Contents %d 0 R >>" % number
        )
        kids.append(number + 1)
    objects[2] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(b"%d 0 R" % kid for kid in kids), len(kids))
    data = bytearray(b"%PDF-1.4\n")
    offsets: list[int] = []
    for number in sorted(objects):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, objects[number])
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    data += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    data += b"trailer\n<< /Size %d /Root 1 0 R /Info 4 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    path.write_bytes(data)
    return path


def locked(path: Path, password: str) -> Path:
    """Lock a PDF that is there."""
    writer = PdfWriter(clone_from=PdfReader(path))
    writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    writer.write(path)
    return path


def word(path: Path, *, title: str = "") -> Path:
    """Write a Word file: a heading, a paragraph, a table with a wide cell and a table in a cell, a paragraph."""
    document = docx.Document()
    document.core_properties.title = title
    document.core_properties.author = ""
    document.add_heading("Keys", 1)
    document.add_paragraph("The clerk rotates them.")
    table = document.add_table(2, 3)
    for column, text in enumerate(["room", "clerk", "key"]):
        table.cell(0, column).text = text
    table.cell(1, 0).merge(table.cell(1, 1)).text = "12, Bruno"
    table.cell(1, 2).text = "7"
    inner = table.cell(1, 2).add_table(1, 1)
    inner.cell(0, 0).text = "steel"
    document.add_paragraph("Ask in room 12.")
    document.save(str(path))
    return path
