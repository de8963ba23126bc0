"""What test modules share as fixtures."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Sums of several threads come out in another order, and small models are slower with them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
