"""Policies on the hub, whose calls are answered by a folder."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError

from lrenv import PolicyFileError, load_policy
from lrenv.hub import push_to_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def create_repo(self, repo_id, **kwargs):
        return type("Repository", (), {"repo_id": repo_id})

    def upload_folder(self, repo_id, folder_path, **kwargs):
        shutil.copytree(folder_path, tmp_path / repo_id)
        return f"hub/{repo_id}/commit/1"

    def snapshot_download(repo_id, allow_patterns, revision):
        if not (tmp_path / repo_id).exists():
            raise OSError(f"404: {repo_id}\nRepository Not Found")
        return str(tmp_path / repo_id)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr("lrenv.hub.snapshot_download", snapshot_download)
    return tmp_path


def test_a_policy_goes_to_the_hub_and_comes_back(hub: Path) -> None:
    policy = load_policy("mlp")
    assert push_to_hub(policy, "me/fine.policy-2", private=True) == "hub/me/fine.policy-2/commit/1"
    for name in ("me/fine.policy-2", "me/fine.policy-2@v1.0"):
        assert load_policy(name).card == policy.card
    assert {p.name for p in (hub / "me/fine.policy-2").iterdir()} == {
        "README.md",
        "mlp.json",
        "mlp.safetensors",
    }
    card = ModelCard.load(hub / "me/fine.policy-2/README.md")
    assert card.data.library_name == "lrenv"
    assert "lrenv train generalist" in card.text
    assert 'policy="me/fine.policy-2"' in card.text


def test_what_the_hub_does_not_have_is_said(hub: Path) -> None:
    with pytest.raises(PolicyFileError, match=r"me/none\.json .* got none \(404: me/none\); c"):
        load_policy("me/none")
    (hub / "me/empty").mkdir(parents=True)
    with pytest.raises(PolicyFileError, match=r"one policy in me/empty, .* got 0"):
        load_policy("me/empty")
    assert issubclass(RepositoryNotFoundError, OSError)
