"""What this machine says of itself."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from autocompress.measure.machine import cores, processor


def test_the_cores_are_those_this_process_may_use():
    assert 1 <= cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("content", ["processor: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: other\n", "", None])
def test_the_processor_has_a_name_also_where_none_is_listed(monkeypatch, content):
    def read_text(_self, **_options):
        if content is None:
            raise FileNotFoundError("/proc/cpuinfo")
        return content

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert processor() == ("Some CPU @ 2 GHz" if content else platform.machine())
