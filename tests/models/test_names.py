import pytest

from ofqctl.errors import ModelError
from ofqctl.models import families, matching, resolve_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224.augreg_in21k"),
        ("levit_256", "levit_256"),
        ("vit_tiny_patch16_224_in21k", "vit_tiny_patch16_224.augreg_in21k"),
        ("deit_small", "deit_small_patch16_224"),
        ("deit_small.fb_in1k", "deit_small_patch16_224.fb_in1k"),
        ("deit_tiny", "deit_tiny_patch16_224"),
        ("deit_tiny_distilled", "deit_tiny_distilled_patch16_224"),
        ("deit_base", "deit_base_patch16_224"),
        ("deit3_base", "deit3_base_patch16_224"),
        ("swin_tiny", "swin_tiny_patch4_window7_224"),
        ("swin_base", "swin_base_patch4_window7_224"),
        ("swinv2_tiny", "swinv2_tiny_window8_256"),
        ("swinv2_cr_tiny", "swinv2_cr_tiny_224"),
        ("vit_tiny", "vit_tiny_patch16_224"),
        ("vit_base", "vit_base_patch16_224"),
        ("vit_base_patch32", "vit_base_patch32_224"),
        ("vit_huge", "vit_huge_patch14_224"),
        ("beit_base", "beit_base_patch16_224"),
        ("eva02_tiny", "eva02_tiny_patch14_224"),
        ("xcit_tiny_12", "xcit_tiny_12_p16_224"),
        ("cait_m36", "cait_m36_384"),
        ("local-dir:some/where", "local-dir:some/where"),
        ("hf-hub:org/name", "hf-hub:org/name"),
    ],
)
def test_a_name_is_taken_or_completed(name, expected):
    assert resolve_name(name) == expected


@pytest.mark.parametrize("name", ["vit", "deit", "eva_large", "vit_medium"])
def test_an_ambiguous_name_lists_a_few_candidates(name):
    with pytest.raises(ModelError, match="candidates: ") as caught:
        resolve_name(name)
    candidates = caught.value.message.split("candidates: ")[1].split(", and ")[0].split(", ")
    assert 2 <= len(candidates) <= 8
    assert all(candidate.startswith(f"{name}_") for candidate in candidates)
    assert f"ofqctl models '{name}_*'" in caught.value.hint


def test_a_width_at_the_end_of_a_name_is_not_taken_for_an_image_size():
    with pytest.raises(ModelError, match="levit_256"):
        resolve_name("levit")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("vit_tinny", "vit_tiny"), ("deit_smal_patch16_224", "deit_small_patch16_224")],
)
def test_an_unknown_name_suggests_the_closest(name, suggestion):
    with pytest.raises(ModelError, match=f"'{name}'") as caught:
        resolve_name(name)
    assert f"did you mean '{suggestion}'?" in caught.value.hint
    assert "ofqctl models 'PATTERN'" in caught.value.hint


@pytest.mark.parametrize("name", ["", "_", "deit_", "zzzzzzzz", ".fb_in1k"])
def test_nonsense_is_refused(name):
    with pytest.raises(ModelError, match="no architecture"):
        resolve_name(name)


def test_an_unknown_tag_lists_the_tags():
    with pytest.raises(ModelError, match="augreg_in21k_ft_in1k, augreg_in21k") as caught:
        resolve_name("vit_tiny.augreg_in21")
    assert "augreg_in21k" in caught.value.hint


def test_a_path_or_hub_id_without_its_prefix_is_refused():
    with pytest.raises(ModelError) as caught:
        resolve_name("timm/vit_tiny_patch16_224")
    assert "hf-hub:timm/vit_tiny_patch16_224" in caught.value.hint


def test_families_hold_every_architecture_once():
    found = families()
    assert "vit_tiny_patch16_224" in found["vision_transformer"]
    assert "swin_tiny_patch4_window7_224" in found["swin_transformer"]
    assert sorted(name for names in found.values() for name in names) == sorted(matching())


def test_a_pattern_is_matched_like_a_file_name_and_a_word_anywhere():
    assert "vit_tiny_patch16_224" in matching("vit_tiny*")
    assert "maxvit_tiny_rw_224" not in matching("vit_tiny*")
    assert {"vit_tiny_patch16_224", "maxvit_tiny_rw_224"} <= set(matching("vit_tiny"))
    assert "vit_tiny_patch16_224.augreg_in21k" in matching("vit_tiny*.augreg*")
    assert matching("no such word") == []
