"""Prompts on a model hub: sent to and read from a stand-in on this machine, by huggingface_hub's own requests."""

import pytest
import tiny
import torch
from hub_server import TOKEN, hub_server
from stored import edit

import dplearn as dp
from dplearn import checkpoint

NAME = "someone/some-prompt"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    with hub_server() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.chdir(tmp_path)
        yield server


def make(**options):
    torch.manual_seed(3)
    return dp.prompted(tiny.t5(dtype=torch.float32), dp.PromptConfig(length=4, **options))


def files_of(hub, revision="main"):
    return {name: data for name, data in hub.find(NAME, revision)[1].items() if name != ".gitattributes"}


def load(**options):
    return dp.from_pretrained(NAME, tiny.t5(dtype=torch.float32), **options)


def same(one, other):
    mine, theirs = one.prompt.state_dict(), other.prompt.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_what_is_sent_is_what_is_saved_and_comes_back(hub, tmp_path):
    model = make(position="instance")
    address = model.push_to_hub(NAME)
    assert address == f"{hub.address}/{NAME}/commit/{hub.find(NAME, 'main')[0]}"
    model.save_pretrained(tmp_path / "folder")
    saved = {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()}
    there = files_of(hub)
    assert there.keys() == saved.keys()
    card = checkpoint.CARD  # the two differ in the name that their lines of code load from
    assert {name: data for name, data in there.items() if name != card} == {
        name: data for name, data in saved.items() if name != card
    }
    assert there[card] == saved[card].replace(b'"this-folder"', f'"{NAME}"'.encode())
    again = load()
    assert same(again, model) and again.prompt_config == model.prompt_config


def test_a_second_one_takes_the_place_of_the_first_in_one_commit(hub):
    make(position="prefix").push_to_hub(NAME)
    second = make(position="postfix", vector="task", pool_size=2)
    second.push_to_hub(NAME, commit_message="Another")
    assert len(hub.repositories[NAME]["main"]) == 3  # the empty one, the first and the second
    assert sorted(name.split("-")[0] for name in files_of(hub)) == [
        "README.md",
        "prompt",
        "prompt_config.json",
    ]
    assert same(load(), second)


def test_only_the_two_files_that_are_read_are_fetched(hub):
    make().push_to_hub(NAME)
    hub.find(NAME, "main")[1].update(
        {"prompt-0123456789abcdef.safetensors": b"old", "pytorch_model.bin": b"large"}
    )
    hub.asked.clear()
    load()
    fetched = {line.rsplit("/", 1)[1] for line in hub.asked if line.startswith("GET")}
    expected = {
        "prompt_config.json",
        *(n for n in files_of(hub) if n.startswith("prompt-") and "0123" not in n),
    }
    assert fetched == expected


def test_a_card_of_ones_own_stays_and_one_of_ours_is_renewed(hub):
    make(position="prefix").push_to_hub(NAME)
    make(position="postfix").push_to_hub(NAME)
    assert b"- Where: after the input (postfix)." in files_of(hub)["README.md"]
    hub.commit(NAME, "main", hub.find(NAME, "main")[1] | {"README.md": b"My own words: \xff"})
    make(position="prefix").push_to_hub(NAME)
    assert files_of(hub)["README.md"] == b"My own words: \xff"
    assert load().prompt_config.position == "prefix"


def test_branches_and_commits(hub):
    first, second = make(position="prefix"), make(position="postfix")
    first.push_to_hub(NAME)
    commit = hub.find(NAME, "main")[0]
    second.push_to_hub(NAME, revision="trial")
    assert same(load(), first) and load().prompt_config.position == "prefix"
    assert load(revision="trial").prompt_config.position == "postfix"
    second.push_to_hub(NAME)
    assert load().prompt_config.position == "postfix"
    assert load(revision=commit).prompt_config.position == "prefix"
    with pytest.raises(FileNotFoundError, match=f"revision='no' is unknown in folder='{NAME}'"):
        load(revision="no")


def test_a_change_can_be_asked_for(hub):
    make(position="prefix").push_to_hub(NAME)
    address = make(position="postfix").push_to_hub(NAME, create_pr=True)
    assert address == f"{hub.address}/{NAME}/discussions/1"
    assert load().prompt_config.position == "prefix"


def test_a_named_prompt_is_sent_and_loaded_beside_others(hub):
    model = make()
    model.add_prompt("other", dp.PromptConfig(length=2, position="postfix"))
    model.push_to_hub(NAME, "other")
    model.load_prompt("again", NAME, revision="main")
    model.use_prompt("again")
    assert model.prompt_config == dp.PromptConfig(length=2, position="postfix")
    with pytest.raises(ValueError, match="name='none' is unknown"):
        model.push_to_hub(NAME, "none")


def test_a_private_repository_wants_a_token(hub, monkeypatch, tmp_path):
    make().push_to_hub(NAME, private=True)
    assert hub.private == {NAME} and load().prompt_config.length == 4
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FileNotFoundError, match="no repository on the hub that this token may see"):
        load(cache_dir=tmp_path / "of somebody else")
    assert load(token=TOKEN).prompt_config.length == 4
    with pytest.raises(
        PermissionError, match=rf"repo_id='{NAME}': the hub does not allow it \(HTTP 401\).*token="
    ):
        make().push_to_hub(NAME)
    make(position="postfix").push_to_hub(NAME, token=TOKEN)
    assert load(token=TOKEN).prompt_config.position == "postfix"


def test_what_was_loaded_once_loads_without_a_connection(hub, monkeypatch, tmp_path):
    from huggingface_hub import constants

    model = make(position="task")
    model.push_to_hub(NAME)
    load()
    load(cache_dir=tmp_path / "elsewhere")
    hub.asked.clear()
    assert same(load(local_files_only=True), model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(load(), model) and same(load(cache_dir=tmp_path / "elsewhere"), model)
    with pytest.raises(FileNotFoundError, match=f"folder='{NAME}' is no folder here, .* not in the cache"):
        load(cache_dir=tmp_path / "empty")
    assert hub.asked == []


def test_half_of_a_prompt_in_the_cache_is_an_error_that_says_so(hub, monkeypatch, tmp_path):
    make().push_to_hub(NAME)
    load()
    (file,) = (tmp_path / "cache").rglob("prompt-*.safetensors")
    file.unlink()
    with pytest.raises(FileNotFoundError, match="not in the cache while the hub cannot be asked"):
        load(local_files_only=True)


def test_a_repository_without_a_prompt(hub):
    hub.repositories[NAME] = {}
    hub.commit(NAME, "main", {"model.safetensors": b"a large model"})
    with pytest.raises(
        FileNotFoundError, match=f"folder='{NAME}' is a repository without prompt_config.json"
    ):
        load()
    assert not [line for line in hub.asked if "model.safetensors" in line]
    with pytest.raises(FileNotFoundError, match="no repository on the hub .* expected a folder written by"):
        dp.from_pretrained("someone/nothing", tiny.t5())


def test_a_file_that_was_edited_on_the_hub_is_refused(hub, tmp_path):
    make().push_to_hub(NAME)
    for name, data in files_of(hub).items():
        (tmp_path / name).write_bytes(data)
    edit(tmp_path, lambda document: document["prompt"].update(position="postfix"), sealed=False)
    changed = {"prompt_config.json": (tmp_path / "prompt_config.json").read_bytes()}
    hub.commit(NAME, "main", files_of(hub) | changed)
    with pytest.raises(ValueError, match="was changed after it was written"):
        load()


@pytest.mark.parametrize("name", ["a/b/c", "two words", "a--b", "", "/x", 3])
def test_a_name_that_no_repository_can_have(name, hub):
    with pytest.raises(ValueError, match=r"repo_id=.*, expected the name of a repository, 'owner/name'"):
        make().push_to_hub(name)
    assert hub.asked == []


def test_numbers_that_are_not_finite_are_not_sent(hub):
    model = make()
    with torch.no_grad():
        model.prompt.vectors[0, 0] = float("nan")
    with pytest.raises(
        ValueError, match=rf"tensor 'vectors' cannot be sent to '{NAME}' with 1 of 64 numbers"
    ):
        model.push_to_hub(NAME)
    assert hub.asked == []


def test_a_folder_is_read_here_and_nobody_is_asked(hub, tmp_path, monkeypatch):
    model = make()
    model.save_pretrained(tmp_path / "someone" / "some-prompt")
    assert same(load(), model)  # the folder of that name, in the current directory
    for missing in (tmp_path / "nothing", "nothing", "./runs/nothing", "runs/of/mine"):
        with pytest.raises(FileNotFoundError, match="holds no prompt_config.json"):
            dp.from_pretrained(missing, tiny.t5())
    with pytest.raises(ValueError, match="revision='main' is one of a repository, but folder="):
        load(revision="main")
    assert hub.asked == []
