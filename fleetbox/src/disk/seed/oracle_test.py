"""Asks the real cloud-init. Standard input is JSON, and so is the answer.

The packages are unpacked, not installed, so what cloud-init imports and the questions do not need is replaced. Nothing
here may change the host: functions that do so are replaced before they are called, and no program is run.
"""

import json
import sys
from unittest import mock

for name in (
    "configobj jinja2 jsonpatch jsonschema netifaces oauthlib oauthlib.oauth1 requests requests.adapters"
    " requests.auth requests.exceptions serial"
).split():
    sys.modules[name] = mock.MagicMock()

from cloudinit import safeyaml, ssh_util, subp, util  # noqa: E402
from cloudinit.config import cc_set_passwords, cc_ssh, cc_ssh_import_id  # noqa: E402
from cloudinit.distros import ug_util  # noqa: E402


def refuse(*args, **kwargs):
    raise RuntimeError(f"the host would be changed: {args}")


for module, names in (
    (subp, ("subp",)),
    (util, ("write_file", "del_file", "ensure_dir", "multi_log", "subp")),
    (cc_set_passwords, ("handle_ssh_pwauth",)),
):
    for name in names:
        setattr(module, name, refuse)
subp.which = lambda program: f"/usr/bin/{program}"
cc_set_passwords.handle_ssh_pwauth = lambda *_: None


def plain(value):
    """A value that is equal to another's only if both have the same types, too."""
    if isinstance(value, dict):
        return ["dict", sorted([plain(k), plain(v)] for k, v in value.items())]
    if isinstance(value, set):
        return ["set", sorted(plain(v) for v in value)]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [plain(v) for v in value]]
    return [type(value).__name__, repr(value)]


def load(text):
    try:
        return json.dumps(plain(safeyaml.load(text))), None
    except Exception as error:  # cloud-init knows some of them; the others end it
        return None, f"{type(error).__name__}: {error}"


def compare(question):
    """Whether a document means the same as the text that fleetbox made of it."""
    source, error = load(question["document"])
    made = question["made"]
    value = load(made) if made is not None else (None, None)
    return {"refused": error, "value": source, "made": value[0], "made_refused": value[1]}


class Distro:
    """A Debian that notes what is done to it."""

    def __init__(self):
        self.passwords = []
        self.expired = []

    def get_default_user(self):
        return {
            "name": "debian", "lock_passwd": True, "gecos": "Debian", "groups": ["adm", "sudo"],
            "sudo": ["ALL=(ALL) NOPASSWD:ALL"], "shell": "/bin/bash",
        }

    def chpasswd(self, pairs, hashed):
        self.passwords += [list(pair) for pair in pairs]

    def expire_passwd(self, user):
        self.expired.append(user)


def users(text):
    """Whom a seed's user data reaches."""
    cfg = util.load_yaml(text)
    cloud = mock.MagicMock()
    cloud.distro = Distro()
    cloud.get_public_ssh_keys.return_value = []
    log = mock.MagicMock()
    fresh = lambda: util.load_yaml(text)  # noqa: E731  the functions change what they are given
    accounts, _groups = ug_util.normalize_users_groups(fresh(), cloud.distro)
    top_level_keys, imports = {}, {}
    ssh_util.setup_user_keys = lambda keys, user, **_: top_level_keys.update({user: sorted(keys)})
    cc_ssh_import_id.import_ssh_ids = lambda ids, user, _: imports.update({user: ids})
    # cc_ssh.handle also makes host keys, so only its part about users is here.
    user, _config = ug_util.extract_default(dict(accounts))
    cc_ssh.apply_credentials(fresh().get("ssh_authorized_keys", []), user, True, "")
    cc_ssh_import_id.handle("ssh_import_id", fresh(), cloud, log, [])
    cc_set_passwords.handle("set_passwords", fresh(), cloud, log, [])
    return {
        "default": user,
        "users": accounts,
        "keys": top_level_keys,
        "imports": imports,
        "passwords": cloud.distro.passwords,
        "expired": cloud.distro.expired,
        "config": json.loads(json.dumps(cfg, default=repr)),
    }


asked = json.load(sys.stdin)
json.dump(
    {
        "documents": [compare(question) for question in asked["documents"]],
        "seeds": [users(text) for text in asked["seeds"]],
    },
    sys.stdout,
)
