"""`vllm serve` with a stock OpenAI client: nothing but the package has to be installed."""

import pytest


pytest.importorskip("vllm")

import engines
from openai import OpenAI
from serving import served


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(checkpoint, tmp_path_factory):
    with served(checkpoint(), tmp_path_factory.mktemp("serve") / "log.txt") as address:
        yield OpenAI(base_url=f"{address}/v1", api_key="none")


def complete(client, prompts, new_tokens=engines.NEW_TOKENS):
    response = client.completions.create(
        model=client.models.list().data[0].id,
        prompt=prompts,
        max_tokens=new_tokens,
        temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    return [choice.token_ids for choice in response.choices]


def test_a_served_model_thinks_in_all_turns(client, checkpoint, reference):
    prompts = engines.make_prompts()
    first = complete(client, prompts)
    assert first == reference()
    turns = [[*prompt, *tokens, 7, 11, 5] for prompt, tokens in zip(prompts, first)]
    assert complete(client, turns, 16) == engines.reference_tokens(checkpoint(), turns, 16)
