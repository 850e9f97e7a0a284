"""Certificates of a cluster and its clients, made by openssl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lab.commands import run


class Certificates:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._name = name
        self.ca = str(folder / f"{name}.pem")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        self._key = key
        run(
            *("openssl", "req", "-x509", *key, "-keyout", str(folder / f"{name}-key.pem"), "-out", self.ca),
            *("-subj", f"/CN={name}", "-days", "30"),
        )

    def issue(self, name: str, subject: str, addresses: Sequence[str] = ()) -> tuple[str, str]:
        """A certificate and its key, for a server with addresses or a client."""
        request, extensions = str(self._folder / f"{name}.csr"), self._folder / f"{name}.ext"
        key, made = str(self._folder / f"{name}-key.pem"), str(self._folder / f"{name}.pem")
        run("openssl", "req", *self._key, "-keyout", key, "-out", request, "-subj", subject)
        names = f"subjectAltName={','.join(f'IP:{one}' for one in addresses)}\n" if addresses else ""
        extensions.write_text(f"{names}extendedKeyUsage=serverAuth,clientAuth\n")
        run(
            *("openssl", "x509", "-req", "-in", request, "-CA", self.ca, "-CAcreateserial", "-days", "30"),
            *("-CAkey", self.ca.replace(".pem", "-key.pem"), "-extfile", str(extensions), "-out", made),
        )
        return made, key
