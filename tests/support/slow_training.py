"""`deformdetr`, but the second of several processes sleeps before every step of the optimizer."""

import os
import sys
import time

from torch.optim.optimizer import register_optimizer_step_pre_hook

from deformdetr.cli import main

SECONDS = 0.2

if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        register_optimizer_step_pre_hook(lambda *_: time.sleep(SECONDS))
    sys.exit(main())
