"""Models on the Hugging Face Hub: their names, and what downloads them into its cache.

A name is `org/name`, `org/name@REVISION` (a branch, a tag or a commit) or either with `hub:` before
it. A folder of that name comes first; `hub:` is for the case that both are there. The cache is that
of `huggingface_hub` (HF_HOME), so that a model that was loaded once is there without a network.
"""

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple, Self

from underpaint.errors import UserError

PREFIX = "hub:"
PART = r"[A-Za-z0-9](?:[\w.-]*[\w])?"
NAME = re.compile(rf"({PART}/{PART})(?:@(\S+))?", re.ASCII)
LOGIN = "log in with `hf auth login`"


class Repository(NamedTuple):
    """`org/name` on the Hub, at a branch, a tag or a commit (None: its main branch)."""

    name: str
    revision: str | None

    @classmethod
    def of(cls, source: str | Path) -> Self | None:
        """The repository that `source` names; None for a folder, one that is there or not.

        A Path is a folder. So is a text whose first part is a folder, for that is a misspelt path
        more often than a name: `hub:` says that it is a name.
        """
        if not isinstance(source, str):
            return None
        is_name = NAME.fullmatch(source) and not Path(source).parent.exists()
        if not source.startswith(PREFIX) and not is_name:
            return None
        return cls.named(source)

    @classmethod
    def named(cls, text: str) -> Self:
        """The repository of a name. Raises UserError for what can be none."""
        found = NAME.fullmatch(text.removeprefix(PREFIX))
        if found is None or "--" in found[1] or ".." in found[1] or len(found[1]) > 96:
            raise UserError(f"{text}: is no name on the Hugging Face Hub; give it as ORG/NAME")
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return self.name + (f"@{self.revision}" if self.revision else "")

    def download(self, names: Collection[str]) -> tuple[Path, str]:
        """The folder of the cache that has the files `names` (those that are there), its commit.

        Raises UserError where the Hub is not reached, or does not give them.
        """
        with self.asking():
            from huggingface_hub import snapshot_download

            folder = snapshot_download(
                self.name, revision=self.revision, allow_patterns=sorted(names)
            )
        return Path(folder), Path(folder).name  # …/snapshots/COMMIT

    @contextlib.contextmanager
    def asking(self, verb: str = "read") -> Iterator[None]:
        """Turn what the Hub, the network or the cache refuses into a sentence (UserError).

        `verb`: read or write.
        """
        from huggingface_hub import constants, errors

        # HTTPError of the library below it: httpx, now httpx2
        http: type[Exception] = errors.HfHubHTTPError.__bases__[0]
        try:
            yield
        except errors.GatedRepoError:
            raise UserError(
                f"{self.name}: is gated on the Hugging Face Hub; ask for access at "
                f"https://huggingface.co/{self.name} and {LOGIN}"
            ) from None
        except errors.RepositoryNotFoundError:
            here = "is no folder here, and " if verb == "read" else "is "
            raise UserError(
                f"{self.name}: {here}no model on the Hugging Face Hub that you may {verb}; check "
                f"the name, or {LOGIN}, if it is private as one who may"
            ) from None
        except errors.RevisionNotFoundError:
            raise UserError(
                f"{self}: {self.name} has no revision {self.revision}; give a branch, a tag or a "
                "commit that is there"
            ) from None
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
            if constants.HF_HUB_OFFLINE:
                why = "the Hugging Face Hub is not asked, since HF_HUB_OFFLINE is set"
            else:
                why = f"the Hugging Face Hub cannot be reached ({_reason(error.__cause__)})"
            if verb == "write":
                raise UserError(f"{self}: {why}; go online, and try again") from None
            raise UserError(
                f"{self}: is no folder here and not in the cache, and {why}; go online, or give a "
                "folder"
            ) from None
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            advice = f"{LOGIN} as one who may" if status in (401, 403) else "try again later"
            raise UserError(
                f"{self}: the Hugging Face Hub refuses to {verb} it ({_reason(error)}); {advice}"
            ) from None
        except (http, RuntimeError) as error:  # of httpx: a proxy, a timeout; of Xet
            raise UserError(
                f"{self}: the Hugging Face Hub cannot be reached ({_reason(error)}); try again "
                "later, or give a folder"
            ) from None
        except (errors.LocalTokenNotFoundError, errors.HFValidationError) as error:
            raise UserError(f"{self}: {_reason(error)}; {LOGIN}, or check the name") from None
        except OSError as error:
            raise UserError(
                f"{self}: cannot be kept in {constants.HF_HUB_CACHE} ({_reason(error)}); set "
                "HF_HOME to a folder with space that you may write to"
            ) from None


def _reason(error: BaseException | None) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or [""])[0].strip().rstrip(".") or type(error).__name__
