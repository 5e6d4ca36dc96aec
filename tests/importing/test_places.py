"""Every transcript is found once, in the usual places or in named ones, with what its name says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokenweir.errors import NotFound
from tokenweir.importing.places import default_places, find_transcripts


def write(path, content="{}\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def find(*places):
    problems = []
    return find_transcripts(places, on_problem=problems.append), problems


def test_the_usual_places_are_those_of_claude_code():
    home = Path("/home/ada")
    assert default_places({}, home) == [home / ".claude/projects", home / ".config/claude/projects"]
    assert default_places({"XDG_CONFIG_HOME": "/x"}, home)[1] == Path("/x/claude/projects")
    assert default_places({"CLAUDE_CONFIG_DIR": " /a , /b/projects,"}, home) == [Path("/a/projects"), Path("/b/projects")]


def test_folders_are_searched_to_the_bottom_and_files_are_taken_whatever_their_name(tmp_path):
    write(tmp_path / "p/s1.jsonl")
    write(tmp_path / "p/s1/subagents/agent-a.jsonl", "{}\n{}\n")
    write(tmp_path / "p/notes.md")
    odd = write(tmp_path / "other/export.log")
    found, problems = find(tmp_path / "p", odd)
    assert [Path(file.path).name for file in found] == ["agent-a.jsonl", "export.log", "s1.jsonl"]
    assert problems == []


def test_the_name_of_a_file_says_project_session_and_agent(tmp_path):
    write(tmp_path / "-home-ada/s1.jsonl")
    write(tmp_path / "-home-ada/s1/subagents/agent-a.jsonl")
    write(tmp_path / "-home-ada/agent-b.jsonl")
    described = {(file.project, file.session_id, file.agent_id) for file in find(tmp_path)[0]}
    assert described == {("-home-ada", "s1", ""), ("-home-ada", "s1", "a"), ("-home-ada", "", "b")}


def test_a_file_that_several_places_and_links_lead_to_is_read_once(tmp_path):
    real = write(tmp_path / "p/s1.jsonl")
    (tmp_path / "p/link.jsonl").symlink_to(real)
    (tmp_path / "p/hard.jsonl").hardlink_to(real)
    (tmp_path / "p/loop").symlink_to(tmp_path)
    assert len(find(tmp_path, tmp_path / "p", real)[0]) == 1


def test_what_cannot_be_read_is_said_and_a_pipe_is_not_waited_on(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    found, problems = find(tmp_path)
    assert found == []
    assert len(problems) == 1
    assert "gone.jsonl" in problems[0]


def test_a_named_place_that_does_not_exist_is_a_failure(tmp_path):
    with pytest.raises(NotFound, match="no file or folder"):
        find(tmp_path / "typo")
