"""What the service says of a study: the same as the command line, page by page, and again only when it changed."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from example_study import example_record, example_trial, write_example
from served import serving

from autocompress import cli
from autocompress.front.summary import point_of
from autocompress.service import views
from autocompress.service.views import _best
from autocompress.study.store import StudyStore


def test_health_needs_no_token_and_says_that_the_queue_is_looked_after(server):
    answer = server.get("/api/v1/health", token=None)
    assert (answer.status, answer.json["status"]) == (200, "ok")


def test_the_front_is_what_the_command_line_prints(server, study, capsys):
    assert cli.run(["front", "digits", "--json", "--workspace", str(server.workspace)]) == 0
    assert server.get(f"{study}/front").json == json.loads(capsys.readouterr().out)


def test_a_summary_tells_what_the_list_needs(server):
    (entry,) = server.get("/api/v1/studies").json["items"]
    assert (entry["study"], entry["state"], entry["job"], entry["deadline"]) == ("digits", "finished", None, None)
    assert entry["trials"] == {
        "total": 6, "running": 0, "complete": 4, "stopped": 1, "infeasible": 0, "failed": 1,
    }  # fmt: skip
    assert entry["id"] != "digits"
    assert entry["best"] == [
        "5.0x smaller and 2.5x faster for 1.0 points of accuracy (trial 2)",
        "7.1x smaller and 1.7x faster for 0.50 points of accuracy (trial 1)",
    ]


def test_a_study_tells_its_facts_but_no_path_of_the_server(server, study):
    detail = server.get(study).json
    assert detail["facts"]["groups"][0]["name"] == "conv1"
    assert detail["facts"]["skips"] == [{"name": "fc", "what": "prune", "reason": "its outputs are the classes"}]
    assert detail["time"] == {"setup": 1.0, "search": 90.0, "final": 27.0}
    assert str(server.workspace) not in json.dumps(detail)


def test_trials_come_in_pages_without_their_curves(server, study):
    first = server.get(f"{study}/trials?limit=4").json
    assert [row["trial"] for row in first["items"]] == [0, 1, 2, 3]
    rest = server.get(f"{study}/trials?limit=4&after={first['next']}").json
    assert [row["trial"] for row in rest["items"]] == [4, 5]
    assert rest["next"] is None
    assert "learning_curve" not in first["items"][0]
    stopped = server.get(f"{study}/trials?state=stopped").json["items"]
    assert [row["trial"] for row in stopped] == [4]


def test_a_trial_tells_its_layers_and_how_to_take_it_away(server, study):
    trial = server.get(f"{study}/trials/1").json
    assert trial["command"].startswith("autocompress export digits --pick trial:1")
    layers = {layer["name"]: layer for layer in trial["layers"]}
    assert (layers["conv1"]["kept"], layers["conv1"]["bits"], layers["fc"]["bits"]) == (8, 4, 32)
    assert server.get(f"{study}/trials/1/figures/layers").json["config"]["showSendToCloud"] is False
    assert server.get(f"{study}/trials/99").status == 404


@pytest.mark.parametrize(
    "name", ["accuracy_size", "accuracy_latency", "accuracy_3d", "hypervolume", "time", "parallel"]
)
def test_figures_share_nothing_with_anybody(server, study, name):
    figure = server.get(f"{study}/figures/{name}").json
    assert figure["data"]
    assert figure["config"]["showSendToCloud"] is False
    assert figure["config"]["plotlyServerURL"] == ""


@pytest.mark.parametrize("path", ["/front", "/trials", "/table", "/figures/time"])
def test_what_did_not_change_is_not_sent_again(server, study, path):
    first = server.get(study + path)
    again = server.get(study + path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert server.get(study + path, headers={"If-None-Match": '"other"'}).status == 200


def test_an_etag_changes_with_the_next_trial(tmp_path):
    from example_study import write_example

    write_example(tmp_path)
    with serving(tmp_path) as server:
        (entry,) = server.get("/api/v1/studies").json["items"]
        front = f"/api/v1/studies/{entry['id']}/front"
        before = server.get(front)
        with StudyStore(tmp_path) as store:
            store.add_trial("digits", example_trial(6, 0.979, 50_000, 0.2))
        after = server.get(front, headers={"If-None-Match": before.headers["etag"]})
        assert after.status == 200
        assert 6 in [point["trial"] for point in after.json["front"]]


def test_an_etag_ends_with_its_server(tmp_path):
    from example_study import write_example

    write_example(tmp_path)
    with serving(tmp_path) as server:
        (entry,) = server.get("/api/v1/studies").json["items"]
        table = f"/api/v1/studies/{entry['id']}/table"
        tag = server.get(table).headers["etag"]
    with serving(tmp_path) as server:  # perhaps of a later version, whose pages ask for more
        assert server.get(table, headers={"If-None-Match": tag}).status == 200


def test_what_does_not_exist_is_a_problem_document(server, study):
    for path in ("/api/v1/studies/s0000000000000000", "/api/v1/exports/x0", f"{study}/figures/nothing", "/api/v1/no"):
        answer = server.get(path)
        assert answer.status == 404, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json["status"] == 404
        assert answer.json["title"] == "Not Found"


def test_pages_of_studies_go_on_where_the_last_one_ended(tmp_path):
    from dataclasses import replace

    from example_study import example_record, write_example

    for hour in range(5):
        record = replace(example_record(f"study-{hour}"), created=f"2026-11-01T0{hour}:00:00+00:00")
        write_example(tmp_path, record)
    with serving(tmp_path) as server:
        found, after = [], ""
        while after is not None:
            page = server.get(f"/api/v1/studies?limit=2{f'&after={after}' if after else ''}").json
            found.append([entry["study"] for entry in page["items"]])
            after = page["next"]
    assert found == [["study-4", "study-3"], ["study-2", "study-1"], ["study-0"]]


def test_a_comparison_says_who_covers_more_and_who_is_smaller(tmp_path):
    from dataclasses import replace

    from example_study import example_record, write_example

    write_example(tmp_path)
    write_example(tmp_path, replace(example_record("longer"), budget_s=240.0))
    with StudyStore(tmp_path) as store:
        store.add_trial("longer", example_trial(6, 0.98, 50_000, 0.2))
    with serving(tmp_path) as server:
        ids = {entry["study"]: entry["id"] for entry in server.get("/api/v1/studies").json["items"]}
        found = server.get(f"/api/v1/compare?study={ids['digits']}&study={ids['longer']}").json
        assert server.get(f"/api/v1/compare?study={ids['digits']}&study={ids['digits']}").status == 422
        both = f"study={ids['digits']}&study={ids['longer']}"
        assert server.get(f"/api/v1/compare/figures/accuracy_size?{both}").json["data"]
    longer = found["studies"][1]
    assert (longer["study"], longer["id"]) == ("longer", ids["longer"])
    assert longer["hypervolume_difference"]["val"] > 0.1
    assert found["notes"]


def test_a_bundle_of_a_damaged_file_fails_with_the_reason(server, study):
    asked = server.post(f"{study}/exports", {"pick": "trial:1"})
    assert asked.status == 202
    location = asked.headers["location"]
    end = time.monotonic() + 60
    while (state := server.get(location).json)["state"] == "queued" and time.monotonic() < end:
        time.sleep(0.05)
    assert state["state"] == "failed"  # the artifacts of the example are no ONNX files
    assert "damaged" in state["error"]
    assert server.get(f"{location}/file").status == 409


def test_metrics_count_requests_by_route_and_not_by_address(server, study):
    server.get(f"{study}/trials/1")
    text = server.get("/api/v1/metrics").body.decode()
    assert 'route="/api/v1/studies/{study_id}/trials/{number}"' in text
    assert 'autocompress_studies{state="finished"} 1' in text
    assert study.rpartition("/")[2] not in text


def test_the_openapi_document_describes_every_route(server):
    document = server.get("/api/v1/openapi.json").json
    assert {"/api/v1/studies", "/api/v1/studies/{identifier}/cancel", "/api/v1/models"} <= set(document["paths"])
    assert "/login" not in document["paths"]
    assert "StudySummary" in document["components"]["schemas"]


@pytest.mark.parametrize("page", ["/", "/compare", "/login", "/static/plotly.min.js"])
def test_pages_are_served_with_a_strict_policy(server, page):
    answer = server.get(page)
    assert answer.status == 200
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_the_pages_of_a_study_and_a_trial_exist(server, study):
    page = study.removeprefix("/api/v1")
    assert server.get(page).status == 200
    assert server.get(f"{page}/trials/1").status == 200
    assert server.get(f"{page}/trials/99").status == 404
    assert server.get("/studies/s0000000000000000").status == 404


def test_what_the_search_believed_is_told_of_the_objectives_of_the_study(tmp_path, monkeypatch):
    asked, belief_facts = {}, views.belief_facts
    monkeypatch.setattr(views, "belief_facts", lambda *given, **of: asked.update(of) or belief_facts(*given, **of))
    objectives = ("accuracy", "compressed", "latency")
    baseline = replace(example_record().baseline, compressed_bytes=900_000)
    write_example(tmp_path, example_record(objectives=objectives, baseline=baseline))
    with serving(tmp_path) as server:
        (entry,) = server.get("/api/v1/studies").json["items"]
        assert server.get(f"/api/v1/studies/{entry['id']}").status == 200
    assert asked["objectives"] == objectives


def test_a_number_that_the_database_cannot_hold_is_refused(server, study):
    assert server.get(f"/api/v1/audit?before={2**63}").status == 422
    assert server.post(f"{study}/refine", {"trial": 2**63}).status == 422
    assert server.get(f"{study}/trials/{2**63}").status == 404
    assert server.get(f"{study.removeprefix('/api/v1')}/trials/{2**63}").status == 404


@pytest.mark.parametrize(("search", "wanted"), [({}, [1, 2]), ({"max_drop": 0.01}, [2])])
def test_the_best_balance_may_lose_more_than_a_point_unless_the_study_says_otherwise(search, wanted):
    """Trial 1 is the knee at 2.5 points; the smallest and the fastest are told up to one point."""
    front = (point_of(example_trial(1, 0.955, 20_000, 0.2)), point_of(example_trial(2, 0.975, 500_000, 0.7)))
    found = _best(example_record(search=search), front)
    assert [int(text.rpartition("trial ")[2].rstrip(")")) for text in found] == wanted
