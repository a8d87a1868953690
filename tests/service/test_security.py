"""Attacks on the door: no token, foreign cookies and pages, rebinding, paths, floods, bombs, and secrets in logs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat

import pytest
from served import OTHER, TOKEN, serving

from autocompress.errors import UsageError
from autocompress.service.app import _listen
from autocompress.service.observe import JsonLines
from autocompress.service.security import cookie_name
from autocompress.service.settings import Settings
from autocompress.service.tokens import FILE, Tokens, read_tokens

UNSAFE = ("POST", "PUT", "PATCH", "DELETE")


def cookie(server, token: str = TOKEN) -> dict[str, str]:
    entered = server.get(f"/login?token={token}", token=None)
    assert entered.status == 303
    return {"Cookie": entered.headers["set-cookie"].partition(";")[0]}


def test_the_port_takes_connections_before_anybody_is_told_its_address(tmp_path):
    with (
        contextlib.closing(_listen(Settings(workspace=tmp_path, port=0))) as listening,
        socket.create_connection(listening.getsockname(), timeout=10) as connection,
    ):
        assert connection.getpeername() == listening.getsockname()


# -- who calls


@pytest.mark.parametrize(
    "path",
    ["/api/v1/studies", "/api/v1/events", "/api/v1/metrics", "/api/v1/audit", "/api/v1/openapi.json", "/api/v1/models"],
)
@pytest.mark.parametrize("token", [None, "", "x" * 43, TOKEN[:-1], TOKEN + "t"])
def test_nothing_is_told_without_the_token(server, path, token):
    answer = server.get(path, token=token)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("method", UNSAFE)
def test_nothing_is_changed_without_the_token(server, method):
    assert server.send(method, "/api/v1/studies", {"builtin": "digits"}, token=None).status in (401, 403)
    assert server.get("/api/v1/studies?name=digits").json["items"][0]["job"] is None


def test_a_study_is_deleted_by_nobody_without_the_token_and_from_no_other_page(server, study):
    assert server.send("DELETE", study, token=None).status in (401, 403)
    foreign = {**cookie(server), "Origin": "http://evil.example"}
    for headers in (cookie(server), foreign, {**foreign, "Sec-Fetch-Site": "cross-site"}):
        assert server.send("DELETE", study, token=None, headers=headers).status == 403
    assert server.get(study).status == 200


def test_a_token_in_the_address_is_good_for_the_login_page_alone(server):
    assert server.get(f"/api/v1/studies?token={TOKEN}", token=None).status == 401


def test_pages_send_a_stranger_to_the_login_page(server):
    answer = server.get("/studies/s0123?x=1", token=None)
    assert (answer.status, answer.headers["location"]) == (303, "/login?next=/studies/s0123")


def test_the_login_link_gives_a_cookie_that_scripts_and_other_sites_cannot_use(server):
    answer = server.get(f"/login?token={TOKEN}", token=None)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "SameSite=strict" in answer.headers["set-cookie"]
    assert TOKEN not in answer.headers["set-cookie"]
    own = cookie(server)
    assert server.get("/api/v1/studies", token=None, headers=own).status == 200
    assert server.get("/api/v1/studies", token=own["Cookie"].partition("=")[2]).status == 401, "it is no token"


@pytest.mark.parametrize(
    "value", ["", "x", "owner", TOKEN, "0" * 64, '"\\', "a" * 5000, "ü"], ids=lambda v: v[:10] or "empty"
)
def test_a_foreign_cookie_opens_nothing(server, value):
    headers = {"Cookie": f"{cookie_name(server.port)}={value}".encode().decode("latin-1")}
    assert server.get("/api/v1/studies", token=None, headers=headers).status == 401


def test_the_cookie_of_another_port_opens_nothing(server):
    value = cookie(server)["Cookie"].partition("=")[2]
    headers = {"Cookie": f"{cookie_name(server.port + 1)}={value}"}
    assert server.get("/api/v1/studies", token=None, headers=headers).status == 401


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "/a\r\nX: y"])
def test_the_login_leads_to_no_other_site(server, target):
    from urllib.parse import quote

    answer = server.get(f"/login?token={TOKEN}&next={quote(target)}", token=None)
    assert (answer.status, answer.headers["location"]) == (303, "/")


def test_a_wrong_token_at_the_login_is_told_kindly(server):
    origin = {"Origin": server.url}
    answer = server.send("POST", "/login", b"token=wrong&next=/", token=None, headers=origin)
    assert answer.status == 401
    assert b"This token is not known here" in answer.body
    right = server.send("POST", "/login", f"token={OTHER}&next=/compare".encode(), token=None, headers=origin)
    assert (right.status, right.headers["location"]) == (303, "/compare")


# -- from where


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "127.0.0.1@evil.example", "evil:80:80",
     "169.254.169.254", "0.0.0.0", "a" * 300],
)  # fmt: skip
def test_a_rebound_name_gets_no_answer_even_with_the_token(server, host):
    for path in ("/api/v1/studies", "/", "/login", "/api/v1/health", "/static/report.js"):
        assert server.get(path, headers={"Host": host}).status == 400, path


def test_two_host_headers_are_refused(server):
    with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
        lines = ["GET /api/v1/health HTTP/1.1", "Host: 127.0.0.1", "Host: evil.example", "Connection: close", "", ""]
        raw.sendall("\r\n".join(lines).encode())
        assert b" 400 " in raw.recv(1000).splitlines()[0]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "[::1]", "127.0.0.1"])
def test_this_machine_may_be_called_by_each_of_its_own_names(server, host):
    assert server.get("/api/v1/health", headers={"Host": f"{host}:{server.port}"}).status == 200


@pytest.mark.parametrize("method", UNSAFE)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "ftp://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {},
    ],
    ids=lambda h: "-".join(h.values()) or "no origin",
)
def test_no_other_page_can_change_anything_with_a_visitors_cookie(server, study, method, headers):
    for path in ("/api/v1/studies", f"{study}/cancel", f"{study}/exports", "/api/v1/models", "/logout", "/login"):
        answer = server.send(method, path, {}, token=None, headers={**cookie(server), **headers})
        assert answer.status == 403, (path, answer.body)


def test_our_own_page_may(server):
    answer = server.post(
        "/api/v1/studies", {"builtin": "none"}, token=None, headers={**cookie(server), "Origin": server.url}
    )
    assert (answer.status, answer.json["errors"][0]["field"]) == (422, "builtin")


def test_a_foreign_origin_is_refused_even_with_a_token(server):
    assert server.post("/api/v1/studies", {}, headers={"Origin": "http://evil.example"}).status == 403


def test_a_name_of_another_machine_must_be_given_for_another_address():
    with pytest.raises(UsageError, match="--allowed-host"):
        Settings(workspace=None, host="0.0.0.0")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="plain host name"):
        Settings(workspace=None, host="0.0.0.0", allowed_hosts=("*",))  # type: ignore[arg-type]
    given = Settings(workspace=None, host="0.0.0.0", allowed_hosts=("GPU-box.lan",))  # type: ignore[arg-type]
    assert "gpu-box.lan" in given.hosts


# -- where it leads


@pytest.mark.parametrize(
    "path",
    [
        "/static/../pyproject.toml", "/static/..%2fpyproject.toml", "/static/%2e%2e/%2e%2e/etc/passwd",
        "/static/..%252f..%252fetc%252fpasswd", "/static//etc/passwd", "/static/....//etc/passwd",
        "/static/study.html.jinja", "/static/%00", "/api/v1/exports/..%2f..%2fautocompress.db/file",
        "/api/v1/exports/../../.server-tokens", "/api/v1/studies/..%2f..%2f.server-tokens", "/.server-tokens",
        "/api/v1/studies/digits/front", "/api/v1/studies/%2e%2e/front",
    ],
)  # fmt: skip
def test_no_address_reaches_a_file(server, path):
    answer = server.get(path)
    assert answer.status == 404, path
    assert b"root:" not in answer.body


# -- how much


def test_a_body_that_is_too_long_is_refused_by_its_length(server):
    answer = server.send("POST", "/api/v1/studies", b"x", headers={"Content-Length": str(2 << 20)})
    assert answer.status == 413


def test_a_body_that_does_not_say_its_length_is_refused_when_it_gets_too_long(server):
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
        head = f"POST /api/v1/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
        raw.sendall(f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        try:
            for _ in range(40):
                raw.sendall(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert b" 413 " in raw.recv(1000).splitlines()[0]


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 30, "abc"])
def test_a_length_that_is_no_number_is_refused(server, length):
    assert server.send("POST", "/api/v1/studies", b"x", headers={"Content-Length": length}).status in (400, 413)


BOMBS = {
    "nested lists": "a = " + "[" * 20_000,
    "nested tables": "[model]\nargs = " + "{a=" * 5_000 + "1" + "}" * 5_000,
    "dotted keys": ".".join("a" * 20_000) + " = 1",
    "many dotted keys": "\n".join(f"{'.'.join('ab' * 40)}.k{i} = 1" for i in range(300)),
    "a huge number": "[search]\nseed = " + "9" * 10_000,
    "a huge float": "[search]\nbudget = " + "9" * 400 + ".0",
    "an endless budget": '[search]\nbudget = "' + "9" * 400 + '"',
    "infinity": "[search]\nbudget = inf",
    "no number": "[search]\nmax_drop = nan",
    "no toml": "\x00\x01",
    "too long": "#" * 100_000,
    "deep names": "[" + "a." * 3000 + "b]\n",
}


@pytest.mark.parametrize("bomb", BOMBS, ids=list(BOMBS))
def test_a_study_file_that_is_a_bomb_is_refused_with_a_reason(server, bomb):
    answer = server.post("/api/v1/studies", {"study_file": BOMBS[bomb]})
    assert answer.status in (413, 422), answer.body
    assert answer.json["detail"]
    assert len(answer.body) < 5000
    assert server.get("/api/v1/health").status == 200


def test_json_that_is_a_bomb_is_refused(server):
    for body in (b'{"set":' * 50_000, b"[" * 100_000, b'{"builtin": ' + b"9" * 100_000 + b"}", b"\xff\xfe", b"{"):
        answer = server.send("POST", "/api/v1/studies", body, headers={"Content-Type": "application/json"})
        assert answer.status in (400, 422), answer.body
        assert answer.headers["content-type"] == "application/problem+json"
    nested: object = 1
    for _ in range(100):
        nested = {"a": nested}
    assert server.post("/api/v1/studies", {"builtin": "digits", "set": {"model.args": nested}}).status == 422


CODE = {
    "a factory": ('[model]\nfactory = "os:system"\n[data]\nfactory = "digits"', "model.factory"),
    "a module path": ('[model]\nfactory = "a.b.c:d.e"\n[data]\nfactory = "digits"', "model.factory"),
    "a data factory": ('[model]\nfactory = "resnet20"\n[data]\nfactory = "os:listdir"', "data.factory"),
    "a folder": ('[model]\nfactory = "resnet20"\n[data]\nfactory = "imagefolder"\nargs = {path = "/"}', "data.factory"),
    "data arguments": ('[model]\nfactory = "resnet20"\n[data]\nfactory = "digits"\nargs = {path = "/"}', "data.args"),
    "a metric": (
        '[model]\nfactory = "resnet20"\n[data]\nfactory = "digits"\n[task]\nmetric = "os:system"', "task.metric"
    ),
    "a download": ('[model]\nfactory = "resnet20"\n[data]\nfactory = "cifar10"\ndownload = true', "data.download"),
    "a pickle": ('[model]\nfactory = "resnet20"\nweights = "t.pt"\n[data]\nfactory = "digits"', "model.weights"),
    "a path": ('[model]\nfactory = "resnet20"\nweights = "/etc/passwd"\n[data]\nfactory = "digits"', "model.weights"),
    "a path behind a model": (
        '[model]\nfactory = "resnet20"\nweights = "model:../../x"\n[data]\nfactory = "digits"', "model.weights"
    ),
    "a teacher": (
        '[model]\nfactory = "resnet20"\n[data]\nfactory = "digits"\n'
        '[teacher]\nnetworks = [{factory = "os:system", weights = "x"}]',
        "teacher.networks.0.factory",
    ),
    "weights of a teacher": (
        '[model]\nfactory = "resnet20"\n[data]\nfactory = "digits"\n'
        '[teacher]\nnetworks = [{factory = "resnet20", weights = "/etc/passwd"}]',
        "teacher.networks.0.weights",
    ),
    "a huge network": (
        '[model]\nfactory = "resnet20"\nargs = {width = 999999999}\n[data]\nfactory = "digits"', "model.args.width"
    ),
    "an object": (
        '[model]\nfactory = "torchvision:resnet18"\nargs = {norm_layer = {a = 1}}\n[data]\nfactory = "digits"',
        "model.args.norm_layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CODE, ids=list(CODE))
def test_a_study_file_that_names_code_or_a_path_is_refused_with_the_field(server, what):
    text, field = CODE[what]
    answer = server.post("/api/v1/studies", {"study_file": text})
    assert answer.status == 422
    assert field in [error["field"] for error in answer.json["errors"]]
    assert all(entry["state"] == "finished" for entry in server.get("/api/v1/studies").json["items"])


def test_every_key_of_a_study_file_that_can_hold_text_was_thought_about():
    """A new key with text in it could be code or a path: look at `admission.py`, then add it here."""
    from autocompress.config import StudyConfig
    from autocompress.service.admission import _HARMLESS

    text = {
        f"{table}.{key}"
        for table, model in StudyConfig.model_fields.items()
        for key, field in getattr(model.annotation, "model_fields", {}).items()
        if "str" in str(field.annotation) or "Any" in str(field.annotation) or "Network" in str(field.annotation)
    }
    checked = {"model.factory", "model.args", "model.weights", "teacher.networks", "data.factory", "task.metric"}
    checked |= {"device.name", "device.runtime", "space.skip"}  # of a list, of a list, names of layers
    assert {key for key in text if key.partition(".")[2] in _HARMLESS.get(key.partition(".")[0], ())} == checked


def test_allow_code_lets_the_same_study_wait_in_the_queue(tmp_path):
    text, _ = CODE["a factory"]
    with serving(tmp_path, allow_code=True) as server:
        assert server.post("/api/v1/studies", {"study_file": text, "name": "own"}).status == 201


def test_names_that_would_be_paths_are_refused(server):
    for name in ("../x", "/etc", "a/b", "", ".hidden", "a\x00b", "a" * 101, "-rf"):
        answer = server.post("/api/v1/studies", {"builtin": "digits", "name": name})
        assert answer.status == 422 or (name == "" and answer.status == 201), name
        if answer.status == 201:  # an empty name is none
            assert answer.json["study"] != ""


def test_the_queue_has_an_end(tmp_path):
    with serving(tmp_path, max_queue=3) as server:
        made = [server.post("/api/v1/studies", {"builtin": "digits"}).status for _ in range(8)]
        assert made.count(201) in (3, 4), "three wait, and one may have been taken already"
        assert made[-1] == 429
        assert server.get("/api/v1/health").status == 200


def test_a_disk_that_is_nearly_full_takes_nothing_new(tmp_path):
    with serving(tmp_path, min_free_bytes=1 << 60) as server:
        answer = server.post("/api/v1/studies", {"builtin": "digits"})
        assert answer.status == 507
        assert "disk space" in answer.json["detail"]
        upload = server.send("POST", "/api/v1/models?architecture=resnet20", b"x")
        assert upload.status == 507


def test_a_budget_beyond_the_servers_is_refused_with_the_field(tmp_path):
    with serving(tmp_path, max_budget_s=60.0) as server:
        answer = server.post("/api/v1/studies", {"builtin": "digits", "budget": "2m"})
        assert [error["field"] for error in answer.json["errors"]] == ["search.budget"]


def test_event_streams_have_an_end(tmp_path):
    with serving(tmp_path, max_streams=1) as server, server.stream("/api/v1/events"):
        assert server.get("/api/v1/events").status == 503


# -- what is told


def test_every_answer_has_the_headers_that_hold_a_browser_back(server):
    for path, token in (("/", TOKEN), ("/api/v1/studies", TOKEN), ("/api/v1/studies", None), ("/nothing", TOKEN)):
        headers = server.get(path, token=token).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe-eval" not in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers or "uvicorn" in headers["server"]


def test_no_page_of_swagger_is_served_from_elsewhere(server):
    assert server.get("/docs").status == 404
    assert server.get("/redoc").status == 404


def test_methods_that_were_not_thought_of_are_refused(server, study):
    for method in ("PUT", "PATCH", "TRACE", "CONNECT"):
        assert server.send(method, study).status in (400, 403, 404, 405), method


def test_the_token_file_is_for_its_owner_alone(tmp_path):
    first = read_tokens(tmp_path)
    path = tmp_path / FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(first.first) >= 43
    assert read_tokens(tmp_path).first == first.first, "the same after a restart"
    path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        read_tokens(tmp_path)


def test_a_token_file_tells_people_apart_and_takes_no_weak_token(tmp_path):
    path = tmp_path / FILE
    path.write_text(f"# people\nowner {TOKEN}\nann {OTHER}\n")
    path.chmod(0o600)
    tokens = read_tokens(tmp_path)
    assert (tokens.of_token(OTHER), tokens.of_token(TOKEN), tokens.of_token("no")) == ("ann", "owner", None)
    path.write_text("ann short\n")
    with pytest.raises(UsageError, match="a name and a token"):
        read_tokens(tmp_path)


def test_no_secret_gets_into_a_log(server, caplog):
    with caplog.at_level(logging.DEBUG, "autocompress.service"):
        own = cookie(server)
        server.get(f"/login?token={TOKEN}x", token=None)
        server.get("/api/v1/studies", token=None, headers=own)
        server.post("/api/v1/studies", {"builtin": TOKEN})
    lines = [JsonLines().format(record) for record in caplog.records]
    assert any('"path": "/login"' in line for line in lines)
    assert not [line for line in lines if TOKEN in line or own["Cookie"].partition("=")[2] in line]
    record = logging.makeLogRecord({"msg": f"somebody logged {TOKEN}"})
    assert TOKEN not in JsonLines(Tokens({"owner": TOKEN})).format(record)


def test_the_environment_of_a_search_has_no_token(tmp_path, monkeypatch):
    import sys

    monkeypatch.setenv("AUTOCOMPRESS_TOKEN", TOKEN)
    out = tmp_path / "environment.json"
    script = f"import json, os; open({str(out)!r}, 'w').write(json.dumps(dict(os.environ)))"
    with serving(tmp_path / "runs", command=lambda *_: [sys.executable, "-c", script]) as server:
        server.post("/api/v1/studies", {"builtin": "digits"})
        from tiny_study import wait_for

        found = json.loads(wait_for(lambda: out.is_file() and out.read_text(), seconds=30, what="the search"))
    assert found["PATH"] == os.environ["PATH"]
    assert TOKEN not in found.values()
