"""Facts about what may be asked: fields have limits, pictures are read within bounds, settings come back."""

import io
import json
import re
import zipfile
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.checkpoints.bundle import Bundle
from ldm.serve.app import PAGE
from ldm.serve.describing import examples_of
from ldm.serve.schemas import MAX_STEPS, MAX_TEXT


def png(
    width: int = 16, height: int = 16, *, texts: dict[str, str] | None = None, kind: str = "PNG"
) -> bytes:
    buffer, note = io.BytesIO(), PngInfo()
    for name, text in (texts or {}).items():
        note.add_itxt(name, text)
    options = {"pnginfo": note} if kind == "PNG" else {}
    Image.new("RGB", (width, height), "red").save(buffer, kind, **options)
    return buffer.getvalue()


def upload(client, data: bytes, path: str = "/v1/uploads"):
    return client.post(path, files={"file": ("../../etc/passwd", data)})


@pytest.mark.parametrize(
    ("asked", "status", "sentence"),
    [
        ({}, 422, "prompts: Field required"),
        ({"prompts": []}, 422, "at least 1 item"),
        ({"prompts": [""]}, 422, "at least 1 character"),
        ({"prompts": ["  "]}, 422, "a prompt is empty: write one or more words"),
        ({"prompts": ["x" * (MAX_TEXT + 1)]}, 422, f"at most {MAX_TEXT} characters"),
        ({"prompts": "x"}, 422, "should be a valid list"),
        ({"prompts": ["x"], "count": 65}, 422, "less than or equal to 64"),
        ({"prompts": ["x"] * 8, "count": 9}, 422, "72 pictures are too many"),
        ({"prompts": ["x"], "seeds": [1, 2]}, 422, "2 seeds for 1 pictures"),
        ({"prompts": ["x"], "seeds": [-1]}, 422, "greater than or equal to 0"),
        ({"prompts": ["x"], "seeds": [2**63]}, 422, "less than"),
        ({"prompts": ["x"], "seeds": [True]}, 422, "valid integer"),
        ({"prompts": ["x"], "seeds": ["7"]}, 422, "valid integer"),
        ({"prompts": ["x"], "sedes": [7]}, 422, "sedes: Extra inputs are not permitted"),
        ({"prompts": ["x"], "quality": "good"}, 422, "'fast', 'balanced' or 'best'"),
        ({"prompts": ["x"], "model": "tinny"}, 404, "there is no model 'tinny', did you mean 'tiny'?"),
        ({"prompts": ["x"], "options": {"steps": 10**9}}, 422, f"less than or equal to {MAX_STEPS}"),
        ({"prompts": ["x"], "options": {"steps": "50"}}, 422, "valid integer"),
        ({"prompts": ["x"], "options": {"width": "7"}}, 422, "options.width"),
        ({"prompts": ["x"], "options": {"../x": 7}}, 422, "options.../x"),
        ({"prompts": ["x"], "options": {"heat": 1e7}}, 422, "less than or equal to 1000000"),
        ({"prompts": ["x"], "options": {"scale": 101}}, 422, "less than or equal to 100"),
        ({"prompts": ["x"], "options": {"width": 7}}, 422, "has no option 'width'; it has negative, scale"),
        ({"prompts": ["x"], "options": {"sampler": "ddmi"}}, 422, "there is no sampler 'ddmi'"),
        ({"prompts": ["x"], "options": {"sampler": "../../etc/passwd"}}, 422, "should match pattern"),
        ({"prompts": ["x"], "options": {"guidance": "autoguidance"}}, 422, "there is no guidance"),
        ({"prompts": ["x"], "source": {"picture": "../x"}}, 422, "should match pattern"),
        ({"prompts": ["x"], "source": {"picture": "0" * 16}}, 404, "there is no picture"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_in_a_sentence(client, asked, status, sentence):
    answer = client.post("/v1/generate", json=asked)
    assert answer.status_code == status
    assert sentence in answer.json()["error"]


def test_settings_of_a_picture_come_back_and_make_it_again(client, picture, make):
    asked = {
        "seeds": [2**62],
        "quality": "fast",
        "options": {"scale": 3.5, "negative": "a hat", "sampler": "ddim"},
    }
    file = picture("<script>alert(1)</script> 🍎", **asked)
    found = upload(client, file.read_bytes(), "/v1/settings").json()
    assert found == {
        "prompt": "<script>alert(1)</script> 🍎",
        "seed": 2**62,
        "model": "tiny",
        "quality": "fast",
        "options": asked["options"],
        "source": None,
        "known": True,
    }
    fields = {name: found[name] for name in ("model", "quality", "options")}
    (name,) = make(found["prompt"], seeds=[found["seed"]], **fields)["pictures"]
    assert client.get(f"/v1/pictures/{name}").content == file.read_bytes()


def test_settings_of_ldm_sample_are_read_too(client, command, bundle_path, tmp_path):
    command("ldm.sample", f"bundle={bundle_path}", "prompts=[owl]", "num_pictures=1", "seed=4", "steps=2",
            "scale=1.5", f"out={tmp_path / 'out'}")  # fmt: skip
    found = upload(client, (tmp_path / "out" / "0000.png").read_bytes(), "/v1/settings").json()
    assert (found["prompt"], found["seed"], found["known"]) == ("owl", 4, True)
    assert found["options"] == {"steps": 2, "scale": 1.5}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "no PNG"),
        (b"GIF89a" + bytes(100), "no PNG"),
        (png(kind="JPEG"), "no PNG"),
        (png(), "the picture carries no settings"),
        (png(texts={"ldm serve": "{"}), "are damaged"),
        (png(texts={"ldm serve": "[1]"}), "are damaged"),
        (
            png(texts={"ldm serve": json.dumps({"prompts": ["x"], "options": {"steps": 10**9}})}),
            "are damaged",
        ),
        (png(texts={"ldm": json.dumps({"prompt": "x", "bundle": "y", "seed": -1})}), "are damaged"),
        (png(texts={"ldm": json.dumps({"prompt": {"a": "b"}})}), "are damaged"),
        (png()[:50], "no PNG"),
        (png()[:-12] + b"\0\0\0\1gAMA\0" + zlib.crc32(b"gAMA\0").to_bytes(4) + png()[-12:], "no PNG"),
        (png()[:-12] + b"\0\0\0\0iCCP" + zlib.crc32(b"iCCP").to_bytes(4) + png()[-12:], "no PNG"),
    ],
    ids=range(12),
)
def test_a_forged_or_foreign_picture_has_no_settings(client, data, sentence):
    answer = upload(client, data, "/v1/settings")
    assert answer.status_code == 422
    assert sentence in answer.json()["error"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not JPEG, PNG or WebP"),
        (b"", "zero bytes"),
        (png()[:50], "damaged"),
        (lambda: png(9000, 8000), "too many pixels"),
        (lambda: png(5000, 4000), "too many pixels"),
        (png(1, 2**14 + 1), "too long a side"),
        (lambda: png(3000, 3000, kind="JPEG") + b"\xff\xda" * 120, "too many scans"),
        (lambda: png(7000, 5000, kind="JPEG"), "too many pixels: 7000 x 5000, more than 33,554,432"),
    ],
    ids=range(8),
)
def test_an_upload_that_is_no_picture_is_refused(client, data, sentence):
    """Large pictures are made here, by the one process that runs the test."""
    answer = upload(client, data if isinstance(data, bytes) else data())
    assert answer.status_code == 422
    assert sentence in answer.json()["error"]


def test_an_upload_is_made_smaller_and_loses_what_it_carries(client, service):
    found = upload(client, png(2048, 512, texts={"secret": "place"})).json()
    assert (found["width"], found["height"]) == (1024, 256)
    kept = service.history.read(found["id"])
    assert b"secret" not in kept
    assert client.get("/v1/history").json() == []  # it is no generated picture


def test_a_picture_and_a_mask_start_a_generation(client, make):
    source, mask = (upload(client, png(32, 16)).json()["id"] for _ in range(2))
    (plain,) = make(seeds=[1])["pictures"]
    (near,) = make(seeds=[1], source={"picture": source, "strength": 0.3})["pictures"]
    (inside,) = make(seeds=[1], source={"picture": source, "mask": mask})["pictures"]
    (more,) = make(seeds=[2], source={"picture": plain, "strength": 0.5})["pictures"]  # "more like this"
    files = {client.get(f"/v1/pictures/{name}").content for name in (plain, near, inside, more)}
    assert len(files) == 4
    other = upload(client, png(16, 32)).json()["id"]
    asked = {"prompts": ["x"], "source": {"picture": source, "mask": other}}
    answer = client.post("/v1/generate", json=asked)
    assert answer.json() == {
        "error": "the mask has 16 x 32 pixels and the picture 32 x 16: take a mask of the picture's size",
        "field": "source.mask",
    }


def test_a_prompt_that_is_cut_is_said(make):
    assert make("red apple")["note"] is None
    assert make("red apple " * 20)["note"] == "the prompt has 122 tokens, and the model reads the first 16"


def test_a_seed_that_javascript_would_round_is_kept_to_the_last_digit(client, make, picture):
    long = 2**63 - 1
    job = make(seeds=[str(long)])  # as the page sends it
    assert job["seeds"] == job["request"]["seeds"] == [long]
    with picture(seeds=[long]).open("rb") as file:
        found = client.post("/v1/settings", files={"file": file}).json()
    assert found["seed"] == long
    # what the page does to an answer before it reads it: texts stay, and long numbers become texts
    pattern = re.search(r"const LONG = /(.*)/g;", (PAGE / "server.js").read_text())[1]
    answer = json.dumps(
        {"prompt": f'a "{long}" {long}', "seeds": [7, long], "at": [1.5, 0.1234567890123456789]}
    )
    quoted = re.sub(pattern, lambda found: found[0] if found[0][0] == '"' else f'"{found[0]}"', answer)
    assert json.loads(quoted) == json.loads(answer) | {"seeds": [7, str(long)]}


def test_history_lists_thumbnails_and_deletes(client, make):
    first, second = (make(seeds=[seed])["pictures"][0] for seed in (1, 2))
    listed = client.get("/v1/history").json()
    assert [each["id"] for each in listed] == [second, first]
    assert [each["seed"] for each in listed] == [2, 1]
    assert [each["id"] for each in client.get(f"/v1/history?before={listed[0]['created']}").json()] == [first]
    assert client.get(f"/v1/pictures/{first}/thumbnail").content.startswith(b"\x89PNG")
    with zipfile.ZipFile(io.BytesIO(client.get("/v1/pictures.zip").content)) as packed:
        assert packed.namelist() == [f"{second}.png", f"{first}.png"]
        assert packed.read(f"{first}.png") == client.get(f"/v1/pictures/{first}").content
    chosen = client.get(f"/v1/pictures.zip?ids={first},../x,{'0' * 16}").content
    with zipfile.ZipFile(io.BytesIO(chosen)) as packed:
        assert packed.namelist() == [f"{first}.png"]
    assert client.delete(f"/v1/pictures/{first}").status_code == 204
    assert client.get(f"/v1/pictures/{first}").status_code == 404
    assert client.delete(f"/v1/pictures/{first}").status_code == 404
    assert client.get(f"/v1/pictures/{second}").status_code == 200


def test_what_is_damaged_or_a_link_is_no_picture(client, make, service, tmp_path):
    (tmp_path / "secret").write_text("the secret")
    damaged, linked = (make(seeds=[seed])["pictures"][0] for seed in (1, 2))
    service.history.path(damaged).write_bytes(png()[:40])
    service.history.path(linked).unlink()
    service.history.path(linked).symlink_to(tmp_path / "secret")
    assert client.get(f"/v1/pictures/{damaged}/thumbnail").status_code == 404
    for path in (linked, f"{linked}/thumbnail"):
        assert client.get(f"/v1/pictures/{path}").status_code == 404
    assert b"secret" not in client.get("/v1/pictures.zip").content
    assert len(client.get("/v1/history").json()) == 2


def test_a_disk_that_takes_nothing_is_said_without_its_path(client, service, monkeypatch, capsys):
    (service.history.folder / "pictures").write_text("a file where the folder should be")
    answer = upload(client, png())
    assert (answer.status_code, answer.json()["error"]) == (
        503,
        "this can't be stored now: the server's log says why",
    )
    assert "pictures" in capsys.readouterr().err


def test_models_say_what_they_offer(client):
    model = client.get("/v1/models").json()[0]
    assert (model["id"], model["size"], model["preview"], model["examples"]) == (
        "tiny",
        16,
        True,
        ["red apple"],
    )
    assert model["default"]["sampler"] == "dpmpp_2m"
    assert model["presets"] == {"fast": {"steps": 4}, "balanced": {"steps": 4}, "best": {"steps": 4}}
    assert "autoguidance" not in model["choices"]["guidance"]


def test_the_description_of_the_api_is_whole(client):
    schema = client.get("/openapi.json").json()
    operations = [each for path in schema["paths"].values() for each in path.values()]
    assert len(operations) > 15
    for each in operations:
        assert each.get("description"), each["operationId"]
        assert {"403", "422", "429"} <= each["responses"].keys()
        said = each["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert said == ("Refusal" if "generations" in each["operationId"] else "Problem")
    fields = schema["components"]["schemas"]["Generate"]["properties"]
    assert fields.keys() == {"prompts", "model", "seeds", "count", "quality", "options", "source"}


def test_examples_are_those_of_the_models_own_run(write_tiny_bundle, tmp_path):
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "run" / "bundle"))
    assert examples_of(bundle) == []
    (tmp_path / "run" / "config.yaml").write_text(
        "callbacks: {samples: {prompts: [a red star, a blue ring]}}\n"
    )
    assert examples_of(bundle) == ["a red star", "a blue ring"]
    (tmp_path / "run" / "config.yaml").write_text("callbacks: [")
    assert examples_of(bundle) == []
    assert "red apple" in examples_of(Bundle.open("shipped"))
