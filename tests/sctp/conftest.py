"""What is in ``inside`` needs a kernel that has SCTP; `test_in_the_guest` runs it under one."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("SHARDFEED_GUEST") else ["inside"]
