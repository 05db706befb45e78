"""`mapolicy pull`: from a drive and from an address."""

from pathlib import Path

from tests.helpers.hub_server import HubServer


def test_pull_from_a_drive_and_an_address(mapolicy, bundle_file: Path, hub_server: HubServer, tmp_path: Path) -> None:
    hub_server.large["digits.safetensors"] = bundle_file.read_bytes()
    for source, expected in (
        (bundle_file, "artifacts/digits.safetensors"),
        (f"{hub_server.address}/plain/digits.safetensors?a=b", "artifacts/digits.safetensors"),
    ):
        pulled = mapolicy("pull", source, "--force")
        assert pulled.code == 0, pulled.err
        assert (tmp_path / expected).read_bytes() == bundle_file.read_bytes()
