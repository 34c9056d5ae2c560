"""The pack's name outside ComfyUI: ``import fpsattention.kernels`` finds this folder.

Inside ComfyUI the host names the folder itself and this file is never imported.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent)]
