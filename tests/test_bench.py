"""The benchmark measures every source and says what it measured."""

import json

from gmai_lib import bench


def test_every_phantom_source_and_the_writer_are_measured(tmp_path, capsys):
    bench.main(["build", "--images", "8", "--out", str(tmp_path / "bench.json")])
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    read = [row for row in rows if row["what"].startswith("read ")]
    assert len(read) == 14 and all(row["n"] > 0 and row["per_second"] > 0 for row in read)
    assert sum("share of decoding" in row for row in read) >= 11
    assert {"write pairs", "write questions"} <= {row["what"] for row in rows}
    assert "of decoding alone" in capsys.readouterr().out
