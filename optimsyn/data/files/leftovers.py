"""Leftovers of programs: locks, caches of a file manager, backups. They are never documents."""

from __future__ import annotations

import re

# Patterns of their names.
_OF_SYSTEMS = (
    r"\.DS_Store|\.AppleDouble|\.LSOverride|\.Spotlight-V100|\.Trashes|\.TemporaryItems|\.fseventsd|\.localized"
    r"|\._.+|__MACOSX|Icon\r|(?:eh)?thumbs(?:_vista)?\.db|desktop\.ini|folder\.ini|autorun\.inf|\$RECYCLE\.BIN"
    r"|System Volume Information|@eaDir|lost\+found|\.directory|\.Trash-\d+|\.nfs[0-9a-f]+|\.dropbox(?:\.attr)?"
)
_LOCKS = r"~\$.+|\.~lock\..+#|\.#.+|.+\.sw[a-p]|.+\.(?:dwl|laccdb|idlk)"
_COPIES = (
    r".+~|~.+\.tmp|#.+#|.+\.(?:bak|bkp|backup|old|orig|rej|tmp|temp|wbk|asd|autosave)"
    r"|.+\.(?:part|partial|crdownload|download)"
)
_PATTERNS = (
    ("a system file", re.compile(_OF_SYSTEMS, re.I)),
    ("a lock of an open file", re.compile(_LOCKS, re.I)),
    ("a backup or an unfinished copy", re.compile(_COPIES, re.I)),
)


def left_behind(name: str, *, folder: bool = False) -> str | None:
    """What kind of leftover a file or folder of this name is; None if it may be the user's.

    Example:
        >>> left_behind("~$report.docx"), left_behind("Thumbs.db"), left_behind("report.docx")
        ('a lock of an open file', 'a system file', None)
    """
    patterns = _PATTERNS[:1] if folder else _PATTERNS
    return next((called for called, pattern in patterns if pattern.fullmatch(name)), None)
