"""Images in messages: which are taken, and what each kind of reader is shown of them."""

import json
from base64 import b64encode

import pytest
from pydantic import TypeAdapter

from agentflow.messages import MAX_IMAGE_BYTES, MAX_IMAGE_SIDE, Image, Message, in_words, to_chat, to_chats
from tests.pictures import PICTURE, png

JPEG = Image("image/jpeg", b"\xff\xd8\xff\xe0rest")
URL = f"data:image/png;base64,{b64encode(png()).decode()}"


@pytest.mark.parametrize(
    ("media_type", "data", "words"),
    [
        ("image/svg+xml", b"<svg/>", "'image/svg"),
        ("image/png", b"", "no image/png"),
        ("image/png", b"<svg/>" * 20, "no image/png"),
        ("image/png", png()[:-1], "no image/png"),
        ("image/png", png()[:24] + png()[-8:], "no image/png"),
        ("image/jpeg", png(), "no image/jpeg"),
        ("image/png", png(0, 1), "0x1 pixels"),
        ("image/png", png(1, MAX_IMAGE_SIDE + 1), f"1x{MAX_IMAGE_SIDE + 1} pixels"),
        ("image/png", png(padding=MAX_IMAGE_BYTES), "more than 4194304"),
    ],
)
def test_what_is_no_image_or_too_large_is_refused(media_type, data, words):
    with pytest.raises(ValueError, match=words):
        Image(media_type, data)


def test_an_image_is_base64_in_json():
    adapter = TypeAdapter(Image)
    line = json.dumps(adapter.dump_python(PICTURE))
    assert json.loads(line)["data"] == b64encode(png()).decode()
    assert adapter.validate_python(json.loads(line)) == PICTURE
    with pytest.raises(ValueError, match="no image/png"):
        adapter.validate_python({"media_type": "image/png", "data": "AAAA"})


def test_a_reader_of_text_sees_a_line_for_each_image():
    message = Message("tool", "done", name="python", images=(PICTURE, JPEG))
    assert in_words(message) == Message("tool", "done\n[image 1: image/png, 2x1]\n[image 2: image/jpeg]", name="python")
    assert in_words(Message("tool", images=(JPEG,))).content == "[image 1: image/jpeg]"
    plain = Message("user", "hello")
    assert in_words(plain) is plain


def test_a_server_gets_images_as_parts():
    part = {"type": "image_url", "image_url": {"url": URL}}
    assert to_chat(Message("user", "look", images=(PICTURE,))) == {
        "role": "user",
        "content": [{"type": "text", "text": "look"}, part],
    }
    assert to_chat(Message("user", images=(PICTURE,)))["content"] == [part]
    assert to_chat(Message("user", "look"))["content"] == "look"


def test_images_of_tools_follow_them_as_a_users_message():
    user = Message("user", "plot")
    conversation = [user, Message("tool", "a", images=(PICTURE,)), Message("tool", "b", images=(JPEG,)), user]
    first, one, two, shown, last = to_chats(conversation)
    assert first == last == {"role": "user", "content": "plot"}
    assert one == {"role": "tool", "content": "a\n[image 1: image/png, 2x1]"}
    assert two == {"role": "tool", "content": "b\n[image 1: image/jpeg]"}
    assert shown["role"] == "user"
    assert [part["type"] for part in shown["content"]] == ["text", "image_url", "image_url"]
    assert to_chats([user, Message("tool", "a")]) == [to_chat(user), {"role": "tool", "content": "a"}]
