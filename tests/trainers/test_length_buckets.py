"""Buckets of like length: which rows and columns they hold, and that nothing is lost."""

import pytest
import torch

from hf_evidenceflow.trainers.length_buckets import join_buckets, length_buckets


def make_mask(prompts, completions, prompt_columns=6, completion_columns=5):
    place = torch.arange(prompt_columns + completion_columns)
    prompts, completions = torch.tensor(prompts)[:, None], torch.tensor(completions)[:, None]
    return ((place >= prompt_columns - prompts) & (place < prompt_columns + completions)).long()


def test_like_rows_are_together_without_the_columns_of_longer_ones():
    mask = make_mask([2, 6, 2, 5], [1, 5, 2, 4])
    short, long = length_buckets(mask, 5, 2)
    assert short.rows.tolist() == [0, 2] and short.columns == slice(4, 8) and short.completion_columns == 2
    assert long.rows.tolist() == [3, 1] and long.columns == slice(0, 11) and long.completion_columns == 5


def test_one_bucket_loses_only_columns_that_no_row_uses():
    mask = make_mask([2, 3], [1, 4])
    (bucket,) = length_buckets(mask, 5, 1)
    assert bucket.columns == slice(3, 10) and bucket.completion_columns == 4


def test_a_row_whose_completion_is_masked_out_keeps_a_column():
    (bucket,) = length_buckets(make_mask([2, 3], [0, 0]), 5, 1)
    assert bucket.completion_columns == 1 and bucket.columns == slice(3, 7)


def test_a_hole_in_the_mask_is_kept():
    mask = make_mask([3], [4])
    mask[0, 7] = 0
    (bucket,) = length_buckets(mask, 5, 1)
    assert bucket.columns == slice(3, 10)


@pytest.mark.parametrize("count, expected", [(1, 1), (3, 3), (7, 7), (100, 7)])
def test_the_number_of_buckets_does_not_depend_on_the_lengths(count, expected):
    for completions in ([1] * 7, [1, 2, 3, 4, 5, 1, 2]):
        assert len(length_buckets(make_mask([2] * 7, completions), 5, count)) == expected


@pytest.mark.parametrize("count", [1, 2, 5])
def test_joined_values_stand_where_they_were(count):
    completions = [3, 1, 5, 2, 4]
    mask = make_mask([1, 6, 2, 3, 1], completions)
    values = torch.arange(25.0).view(5, 5)
    buckets = length_buckets(mask, 5, count)
    parts = [values[bucket.rows, : bucket.completion_columns] for bucket in buckets]
    joined = join_buckets(buckets, parts, 5)
    used = mask[:, 6:] != 0
    assert torch.equal(joined[used], values[used])
    assert count < 5 or not joined[~used].any()
