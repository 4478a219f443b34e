import time

import pytest

from hf_evidenceflow.tokenization.pretokens import process_pool


def test_a_pool_that_is_interrupted_drops_what_has_not_begun():
    jobs = []
    with pytest.raises(KeyboardInterrupt), process_pool(1) as pool:
        jobs += [pool.submit(time.sleep, 0.05) for _ in range(20)]
        raise KeyboardInterrupt
    assert sum(job.cancelled() for job in jobs) > 10
