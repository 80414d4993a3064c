from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dejavu.video.codec_grid import MotionBinning, macroblock_classes, mean_motion, quantisers
from dejavu.video.decode import decode_all

CLIPS = ("bikes", "carphone_pristine", "world")


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize(("binning", "key"), [("destination", "mv_by_destination"), ("published", "mv_by_source")])
def test_one_pass_equals_the_three_separate_tools(
    shared_dir: Path, clip: str, binning: MotionBinning, key: str
) -> None:
    folder = shared_dir / "golden" / "codec"
    golden = np.load(folder / f"{clip}_2fps_224.codec.npz")
    decoded = decode_all(folder / f"{clip}_2fps_224.mp4", motion_binning=binning)
    codec_F4PP = decoded.codec_F4PP
    assert decoded.codec_metadata
    assert decoded.picture_types == "".join(golden["picture_type"])
    np.testing.assert_array_equal(codec_F4PP[:, 0], golden["mb_type"])
    np.testing.assert_array_equal(codec_F4PP[:, 3], golden["qp"])
    np.testing.assert_allclose(codec_F4PP[:, 1:3].transpose(0, 2, 3, 1), golden[key], atol=1e-5)


def test_no_intra_macroblock_gets_motion_when_filed_by_destination(shared_dir: Path) -> None:
    codec_F4PP = decode_all(shared_dir / "golden" / "codec" / "bikes_2fps_224.mp4").codec_F4PP
    intra_FPP = codec_F4PP[:, 0] == 6
    assert intra_FPP.any()
    assert not codec_F4PP[:, 1:3].transpose(0, 2, 3, 1)[intra_FPP].any()


def test_the_second_character_counts_only_for_predicted_macroblocks() -> None:
    rows_text = ["  0 S  d- D+ i| \n", " 16 I  P  A  >  \n", " 32 <- X| >+ <  \n", " 48 >  >  >  >  \n"]
    expected = [[1, 1, 1, 6], [6, 6, 6, 2], [3, 3, 4, 2], [2, 2, 2, 2]]
    assert macroblock_classes(rows_text, 4, 4)[0].tolist() == expected


def test_an_unknown_macroblock_type_is_said_and_not_guessed() -> None:
    with pytest.raises(ValueError, match=r"macroblock type: got '\?"):
        macroblock_classes(["  0 ?  \n"], 1, 1)


def test_motion_is_the_plain_mean_over_the_vectors_of_a_macroblock() -> None:
    vectors_M4 = np.array([(8, 8, 24, 8), (40, 8, 24, 8), (24, 8, 28, 8)], np.int16)  # into column 1: +16, -16, +4
    motion_F2RC = mean_motion(vectors_M4, np.array([1, 1, 1]), (2, 1, 2), "destination")
    assert not motion_F2RC[0].any()
    np.testing.assert_allclose(motion_F2RC[1, :, 0, 1], [4 / 3 / 16, 0], atol=1e-7)
    assert not motion_F2RC[1, :, 0, 0].any()


def test_published_binning_drops_what_comes_from_outside() -> None:
    vectors_M4 = np.array([(0, 8, 8, 8), (24, 8, 8, 8)], np.int16)  # from left of the picture, from column 1
    np.testing.assert_allclose(mean_motion(vectors_M4, np.zeros(2, int), (1, 1, 2), "published")[0, 0, 0], [0, -1])


def test_a_quantiser_is_the_frame_s_plus_the_block_s() -> None:
    header = np.zeros(68, np.uint8)
    header[:4].view(np.uint32)[0] = 2
    header[8:24].view(np.uint64)[:] = (68, 20)
    header[24:32].view(np.int32)[:] = (1, 30)
    blocks = np.array([[16, 0, 16, 16, -4], [0, 0, 16, 16, 7]], np.int32)
    parameters_FB = np.concatenate([header, blocks.reshape(-1).view(np.uint8)])[None]
    assert quantisers(parameters_FB, 1, 2).tolist() == [[[37, 26]]]
    header[24:28].view(np.int32)[:] = 0  # VP9's numbers mean something else
    parameters_FB = np.concatenate([header, blocks.reshape(-1).view(np.uint8)])[None]
    assert quantisers(parameters_FB, 1, 2).tolist() == [[[26, 26]]]
