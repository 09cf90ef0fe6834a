"""Images of messages: addresses that are taken, bounds, damage; and who refuses them."""

from __future__ import annotations

import base64
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import dspy
import litellm
import pytest

from dspy_toolkit.errors import ModelError, RequestRefused
from dspy_toolkit.lm.adapter import FORMATS
from dspy_toolkit.lm.litellm.translation import reading_images, translate
from dspy_toolkit.lm.models.weights import Weights, find_weights, names_vision
from dspy_toolkit.lm.protocol import Image
from dspy_toolkit.lm.vision import images
from dspy_toolkit.lm.vision.images import open_images, take_image
from dspy_toolkit.lm.vision.weights import check_vision, reads_images
from tests.lm.vision.tiny_vision import picture, uri


def message(*parts: str | bytes) -> dict[str, Any]:
    """Texts, and the files of images."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": uri(part)}}
        for part in parts
    ]
    return {"role": "user", "content": content}


def sent(file: bytes) -> list[Image]:
    return [take_image(uri(file), 0)]


def test_the_text_of_a_message_is_joined_and_its_images_keep_their_places() -> None:
    first, second = picture(), picture(10)
    with reading_images():
        (request,) = translate([message("Is ", first, "like ", second, second)], {}, None)
    (said,) = request.messages
    assert (said.content, [image.at for image in said.images]) == ("Is like ", [3, 8, 8])
    assert [base64.b64decode(image.data) for image in said.images] == [first, second, second]


def test_who_reads_text_only_says_what_reads_images() -> None:
    for asked in (message("Is it red?", picture()), message(picture())):
        with pytest.raises(RequestRefused, match=r"text only.*mlx-vlm.*pip install 'dspy-toolkit\[vision\]'"):
            translate([asked], {}, None)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "http://example.com/a.png",
        "gs://bucket/a.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "data:text/plain;base64,QQ==",
        "data:image/png,QQ==",
        "data:image/png;base64",
        None,
        7,
    ],
)
def test_what_is_no_data_uri_of_an_image_is_refused_in_one_sentence(url: Any) -> None:
    asked = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    with (
        reading_images(),
        pytest.raises(RequestRefused, match="nothing is fetched from elsewhere: give its bytes") as caught,
    ):
        translate([asked], {}, None)
    assert str(caught.value).count(". ") == 0 and len(str(caught.value)) < 300


def test_other_parts_are_refused_beside_images() -> None:
    asked = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "QQ=="}}]}
    with (
        reading_images(),
        pytest.raises(RequestRefused, match="type input_audio; this engine reads text and images only"),
    ):
        translate([asked], {}, None)


def test_a_data_uri_may_say_more_of_its_type() -> None:
    file = picture(kind="JPEG")
    data = base64.b64encode(file).decode()
    assert take_image(f"data:image/jpeg;name=a.jpg;charset=utf-8;base64,{data}", 2) == Image(at=2, data=data)
    assert take_image(f"DATA:IMAGE/JPEG;BASE64,{data}", 0).data == data


@pytest.mark.parametrize("data", ["Q", "Q=Q=", "QQ==\n", "QÄ=="])
def test_no_base64(data: str) -> None:
    with pytest.raises(RequestRefused, match="no base64"):
        take_image(f"data:image/png;base64,{data}", 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats(kind: str) -> None:
    (found,) = open_images(sent(picture(size=(31, 17), kind=kind)))
    assert (found.mode, found.size) == ("RGB", (31, 17))


def test_formats_that_other_programs_read_are_not() -> None:
    file = BytesIO()
    open_images(sent(picture()))[0].save(file, "EPS")
    with pytest.raises(RequestRefused, match="Image 1 of 1 cannot be read"):
        open_images(sent(file.getvalue()))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("keep", [0, 3, 0.3, 0.7])
def test_a_damaged_file_is_one_refusal(kind: str, keep: float) -> None:
    file = picture(size=(200, 200), kind=kind)
    cut = file[: int(keep if keep > 1 else keep * len(file))]
    with pytest.raises(RequestRefused, match=rf"Image 2 of 2 cannot be read \({len(cut)} bytes\)"):
        open_images([*sent(picture()), *sent(cut)])


def test_a_picture_lies_as_its_camera_was_held() -> None:
    from PIL import Image as Pillow

    file, notes = BytesIO(), Pillow.Exif()
    notes[0x0112] = 6  # a quarter turn
    Pillow.new("RGB", (40, 20)).save(file, "JPEG", exif=notes)
    assert open_images(sent(file.getvalue()))[0].size == (20, 40)


def test_bytes_are_bounded_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    file = picture()
    monkeypatch.setattr(images, "MAX_BYTES", len(file))
    assert len(open_images(sent(file))) == 1
    with pytest.raises(RequestRefused, match=f"{2 * len(file):,} bytes, and {len(file):,} may be sent"):
        open_images(sent(file) * 2)
    monkeypatch.setattr(images, "MAX_BYTES", len(file) - 5)
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(RequestRefused, match="may be sent together"):
        take_image(uri(file), 0)


def test_pixels_are_bounded_by_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image as Pillow

    monkeypatch.setattr(images, "MAX_PIXELS", 2400)
    assert len(open_images(sent(picture()) * 2)) == 2  # of 40 by 30
    with pytest.raises(RequestRefused, match="3,600 pixels, and 2,400 may be sent"):
        open_images(sent(picture()) * 3)
    monkeypatch.setattr(
        Pillow, "MAX_IMAGE_PIXELS", 1000
    )  # Pillow's own bound: it warns, and from twice as many on raises
    with pytest.raises(RequestRefused, match="over 1,000 pixels"):
        open_images(sent(picture()))
    with pytest.raises(RequestRefused, match="over 1,000 pixels"):
        open_images(sent(picture(size=(80, 60))))


def test_outputs_beside_an_image_have_a_grammar() -> None:
    seen = dspy.Signature("image: dspy.Image, question -> label: Literal['red', 'blue'], sure: bool")
    unseen = dspy.Signature("question -> label: Literal['red', 'blue'], sure: bool")
    for kind in FORMATS.values():
        assert kind.grammar(seen) == kind.grammar(unseen) is not None
        content = [
            turn["content"] for turn in kind().format(seen, [], {"image": dspy.Image(uri(picture())), "question": "?"})
        ]
        with reading_images():
            (request,) = translate([{"role": "user", "content": content[-1]}], {}, None)
        (said,) = request.messages
        assert len(said.images) == 1 and 0 < said.images[0].at < len(said.content) and "base64" not in said.content


# Who answers for a vision model.


@pytest.fixture
def vision_folder(model_home: Path, tmp_path: Path) -> Path:
    """A folder whose config.json names a vision model of a type that mlx_lm does not know."""
    folder = tmp_path / "a vision model"
    folder.mkdir()
    source = model_home / "models" / "smollm2-135m"
    for path in source.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    text = (source / "config.json").read_text().replace('"model_type": "llama"', '"model_type": "smolvlm"')
    (folder / "config.json").write_text(text.replace("{", '{"vision_config": {"depth": 2},', 1))
    return folder


def test_config_names_a_vision_model(vision_folder: Path, tmp_path: Path) -> None:
    assert names_vision(vision_folder)
    for text in ('{"vision_config": null}', "{}", "[]", "{", '{"model_type": "llama"}'):
        (tmp_path / "config.json").write_text(text)
        assert not names_vision(tmp_path)
    assert not names_vision(tmp_path / "nowhere")


def without_mlx_vlm(monkeypatch: pytest.MonkeyPatch, *, installed: bool = False) -> None:
    monkeypatch.setattr("dspy_toolkit.lm.vision.weights.vision_installed", lambda: installed)


def test_without_mlx_vlm_a_vision_model_names_the_extra(
    vision_folder: Path, model_home: Path, monkeypatch: pytest.MonkeyPatch, engines_of_its_own: None
) -> None:
    from dspy_toolkit.lm import close_engines, connect, root_error
    from dspy_toolkit.settings import load_settings

    without_mlx_vlm(monkeypatch)
    monkeypatch.setattr("dspy_toolkit.lm.litellm.fallback.torch_installed", lambda: False)
    connection = connect(load_settings(home=model_home, lm={"model": f"mlx/{vision_folder}", "lease": "share"}))
    with pytest.raises(Exception, match=r"text only.*pip install 'dspy-toolkit\[vision\]'") as caught:
        litellm.completion(model=connection.model, messages=[message("Is it red?", picture())])
    assert isinstance(root_error(caught.value), RequestRefused)
    with pytest.raises(Exception, match=r"vision model, which mlx-vlm can load.*dspy-toolkit\[vision\]") as caught:
        connection.lm("hello", cache=False)
    assert isinstance(root_error(caught.value), ModelError)
    close_engines()


def test_what_the_vision_engine_answers_for(
    vision_folder: Path, model_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, plain = find_weights(f"mlx/{vision_folder}", model_home), find_weights("mlx/smollm2-135m", model_home)
    adapted = Weights(weights.name, weights.folder, weights.sha256, adapter=vision_folder)
    without_mlx_vlm(monkeypatch)
    assert not reads_images(weights)
    with pytest.raises(ModelError, match=r"mlx-vlm is not installed.*pip install 'dspy-toolkit\[vision\]'"):
        check_vision(weights)
    without_mlx_vlm(monkeypatch, installed=True)
    assert reads_images(weights) and not reads_images(plain) and not reads_images(adapted)
    check_vision(weights)
    with pytest.raises(ModelError, match="adapter"):
        check_vision(adapted)
    (vision_folder / "config.json").write_text('{"vision_config": {"depth": 2}, "model_file": "model.py"}')
    with pytest.raises(ModelError, match="model_file"):
        check_vision(weights)


def test_who_is_asked_for_a_vision_model(
    vision_folder: Path, model_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dspy_toolkit.lm.connection import _backends
    from dspy_toolkit.settings import load_settings

    without_mlx_vlm(monkeypatch, installed=True)
    monkeypatch.setattr("dspy_toolkit.lm.litellm.fallback.torch_installed", lambda: True)
    weights = find_weights(f"mlx/{vision_folder}", model_home)

    def asked(**lm: Any) -> list[str]:
        settings = load_settings(home=model_home, lm={"fallbacks": ["openai/big"], **lm})
        return [backend.name for backend in _backends(weights, settings)]

    assert asked() == [weights.name, "openai/big"]
    assert asked(backend="mlx") == [weights.name]
    assert asked(backend="torch") == [weights.name.replace("mlx/", "torch/"), "openai/big"]


def test_nobody_pays_for_it_who_does_not_ask() -> None:
    code = "import sys, dspy_toolkit.lm.connection; print({'mlx_vlm', 'cv2', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
