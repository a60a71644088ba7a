"""Tests of `keras_warmup.publish` and `keras_warmup.versions`."""

import errno
import os
import pathlib
import stat
import time

import pytest
import tensorflow as tf

from keras_warmup import publish, versions
from keras_warmup.errors import OptionsError, PublishError

gfile = tf.io.gfile


class BuildError(Exception):
    pass


def build(directory, text="new", warmup=True):
    """Writes what a SavedModel looks like from outside."""
    files = ["saved_model.pb", "variables/variables.index", "fingerprint.pb"]
    for name in files + (["assets.extra/tf_serving_warmup_requests"] if warmup else []):
        path = f"{os.fspath(directory)}/{name}"
        gfile.makedirs(path.rpartition("/")[0])
        with gfile.GFile(path, "w") as file:
            file.write(text)


def read(path):
    with gfile.GFile(f"{path}/saved_model.pb") as file:
        return file.read()


def publish_to(path, text="new", overwrite=False):
    with publish.staged(path, overwrite=overwrite) as staging:
        build(staging, text)
    return staging.published


def tree(root):
    return sorted(str(path.relative_to(root)) for path in pathlib.Path(root).rglob("*"))


@pytest.fixture(params=["local", "ram"])
def base(request, tmp_path):
    """A base path that does not exist, on a file system that renames directories and on one that has only files."""
    if request.param == "local":
        yield str(tmp_path / "models" / "m")
    else:
        root = f"ram://{tmp_path.name}"
        gfile.makedirs(root)
        yield f"{root}/models/m"
        gfile.rmtree(root)


# -- staged ------------------------------------------------------------------------------------------------------------


def test_staged_publishes_all_files_and_leaves_nothing_else(base):
    with publish.staged(f"{base}/1", overwrite=False) as staging:
        assert not gfile.exists(f"{base}/1")
        assert staging.published is None
        name = os.fspath(staging).rpartition("/")[2]
        assert name.startswith(".1.kw-") and not name.isdigit()
        build(staging)
    assert staging.published == f"{base}/1"
    assert read(f"{base}/1") == "new"
    assert gfile.exists(f"{base}/1/assets.extra/tf_serving_warmup_requests")
    assert gfile.exists(f"{base}/1/variables/variables.index")
    assert [entry.rstrip("/") for entry in gfile.listdir(base)] == ["1"]


@pytest.mark.parametrize("kind", [BuildError, KeyboardInterrupt, SystemExit])
def test_staged_leaves_no_trace_of_a_failed_block(tmp_path, kind):
    (tmp_path / "models").mkdir()
    error = kind("boom")
    with (
        pytest.raises(kind) as caught,
        publish.staged(tmp_path / "models" / "a" / "b" / "1", overwrite=False) as staging,
    ):
        build(staging)
        raise error
    assert caught.value is error
    assert tree(tmp_path) == ["models"]


def test_staged_keeps_parents_that_others_filled_meanwhile(tmp_path):
    with pytest.raises(BuildError), publish.staged(tmp_path / "m" / "1", overwrite=False):
        (tmp_path / "m" / "7").mkdir()
        raise BuildError
    assert tree(tmp_path) == ["m", "m/7"]


def test_staged_removes_the_hidden_directory_on_a_flat_store_too(base):
    with pytest.raises(BuildError), publish.staged(f"{base}/1", overwrite=False) as staging:
        build(staging)
        raise BuildError
    assert not gfile.exists(f"{base}/1")
    assert not gfile.exists(staging.directory)


def test_staged_refuses_to_publish_nothing(tmp_path):
    with pytest.raises(PublishError) as caught, publish.staged(tmp_path / "m" / "1", overwrite=False):
        pass
    assert str(caught.value) == (f"Nothing to publish to '{tmp_path}/m/1': no file was written to the directory given.")
    assert tree(tmp_path) == []


def test_published_directory_has_the_permissions_of_the_umask(tmp_path):
    umask = os.umask(0o022)
    try:
        publish_to(tmp_path / "m" / "1")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "m" / "1").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o755


def test_saved_model_pb_arrives_last_and_leaves_first_on_a_flat_store(tmp_path, monkeypatch):
    base = f"ram://{tmp_path.name}"
    renamed = []
    rename = gfile.rename
    monkeypatch.setattr(gfile, "rename", lambda src, dst, overwrite=False: (renamed.append(dst), rename(src, dst))[1])
    publish_to(f"{base}/1", "old")
    assert renamed == [
        f"{base}/1/assets.extra/tf_serving_warmup_requests",
        f"{base}/1/fingerprint.pb",
        f"{base}/1/variables/variables.index",
        f"{base}/1/saved_model.pb",
    ]
    renamed.clear()
    publish_to(f"{base}/1", "new", overwrite=True)
    assert renamed[0].endswith("/saved_model.pb") and ".1.kw-old-" in renamed[0]
    assert renamed[-1] == f"{base}/1/saved_model.pb"
    assert read(f"{base}/1") == "new"


def test_flat_store_failure_in_the_middle_publishes_nothing(tmp_path, monkeypatch):
    base = f"ram://{tmp_path.name}"
    rename = gfile.rename

    def failing(src, dst, overwrite=False):
        if dst.endswith("/1/saved_model.pb"):
            raise tf.errors.UnavailableError(None, None, "the store is away")
        rename(src, dst, overwrite)

    gfile.makedirs(base)
    monkeypatch.setattr(gfile, "rename", failing)
    with pytest.raises(PublishError) as caught:
        publish_to(f"{base}/1")
    assert str(caught.value) == f"Cannot publish to '{base}/1': the store is away."
    assert gfile.listdir(base) == []


def test_directory_that_cannot_be_renamed_across_layers_is_moved_file_by_file(tmp_path, monkeypatch):
    rename = gfile.rename

    def across_layers(src, dst, overwrite=False):
        if os.path.isdir(src):
            raise tf.errors.UnimplementedError(None, None, f"{src}; Invalid cross-device link")
        rename(src, dst, overwrite)

    monkeypatch.setattr(gfile, "rename", across_layers)
    publish_to(tmp_path / "1")
    assert read(tmp_path / "1") == "new"
    assert os.listdir(tmp_path) == ["1"]


# -- overwrite ---------------------------------------------------------------------------------------------------------


def test_overwrite_replaces_all_that_was_there(base):
    publish_to(f"{base}/1", "old")
    with gfile.GFile(f"{base}/1/assets.extra/other", "w") as file:
        file.write("other")
    with publish.staged(f"{base}/1", overwrite=True) as staging:
        build(staging, "new", warmup=False)
        assert read(f"{base}/1") == "old"
    assert read(f"{base}/1") == "new"
    assert not gfile.exists(f"{base}/1/assets.extra/other")
    assert [entry.rstrip("/") for entry in gfile.listdir(base)] == ["1"]


def test_overwrite_publishes_where_nothing_or_an_empty_directory_is(tmp_path):
    (tmp_path / "1").mkdir()
    assert publish_to(tmp_path / "1", overwrite=True) == str(tmp_path / "1")
    assert publish_to(tmp_path / "2", overwrite=True) == str(tmp_path / "2")
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_failed_block_leaves_the_old_model(base):
    publish_to(f"{base}/1", "old")
    with pytest.raises(BuildError), publish.staged(f"{base}/1", overwrite=True) as staging:
        build(staging)
        raise BuildError
    assert read(f"{base}/1") == "old"
    assert [entry.rstrip("/") for entry in gfile.listdir(base)] == ["1"]


@pytest.mark.parametrize("kind", ["error", "interrupt before", "interrupt after"])
def test_old_model_is_put_back_when_the_new_one_cannot_be_moved_in(tmp_path, monkeypatch, kind):
    publish_to(tmp_path / "1", "old")
    rename = gfile.rename

    def failing(src, dst, overwrite=False):
        if ".kw-old-" not in src and dst == str(tmp_path / "1"):
            if kind == "error":
                raise tf.errors.PermissionDeniedError(None, None, f"{src}; Permission denied")
            if kind == "interrupt after":
                rename(src, dst, overwrite)
            raise KeyboardInterrupt
        rename(src, dst, overwrite)

    monkeypatch.setattr(gfile, "rename", failing)
    with pytest.raises(PublishError if kind == "error" else KeyboardInterrupt):
        publish_to(tmp_path / "1", "new", overwrite=True)
    assert read(tmp_path / "1") == ("new" if kind == "interrupt after" else "old")
    assert os.listdir(tmp_path) == ["1"]


def test_interrupt_after_moving_aside_puts_the_old_model_back(tmp_path, monkeypatch):
    publish_to(tmp_path / "1", "old")
    rename = gfile.rename

    def interrupted(src, dst, overwrite=False):
        rename(src, dst, overwrite)
        if ".kw-old-" in dst:
            raise KeyboardInterrupt

    monkeypatch.setattr(gfile, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish_to(tmp_path / "1", "new", overwrite=True)
    assert read(tmp_path / "1") == "old"
    assert os.listdir(tmp_path) == ["1"]


def test_overwrite_refuses_a_base_path_with_versions(tmp_path):
    publish_to(tmp_path / "m" / "1")
    publish_to(tmp_path / "m" / "2")
    with pytest.raises(PublishError) as caught:
        publish.check_publishable(tmp_path / "m", overwrite=True)
    assert str(caught.value) == (
        f"Cannot replace '{tmp_path}/m': it holds 2 versions of a model, such as '1', and replacing would remove all "
        f"of it. Publish to '{tmp_path}/m/{{version}}' or another path, or remove it yourself."
    )


def test_overwrite_refuses_what_is_no_saved_model(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(PublishError) as caught:
        publish_to(tmp_path / "thesis", overwrite=True)
    assert str(caught.value) == (
        f"Cannot replace '{tmp_path}/thesis': it is not a SavedModel, but holds 1 other entries, and replacing would "
        f"remove all of it. Publish to '{tmp_path}/thesis/{{version}}' or another path, or remove it yourself."
    )
    with pytest.raises(PublishError, match="it is a file, not a SavedModel"):
        publish_to(tmp_path / "file", overwrite=True)
    assert tree(tmp_path) == ["file", "thesis", "thesis/chapter.tex"]


def test_symbolic_link_stays_and_what_it_names_is_replaced(tmp_path):
    publish_to(tmp_path / "real" / "3", "old")
    (tmp_path / "latest").symlink_to(tmp_path / "real" / "3")
    assert publish_to(tmp_path / "latest", "new", overwrite=True) == str(tmp_path / "real" / "3")
    assert (tmp_path / "latest").is_symlink()
    assert read(tmp_path / "latest") == "new"


# -- check_publishable -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: path.mkdir(), "an empty directory"),
        (lambda path: path.write_text("x"), "a file"),
        (lambda path: publish_to(path), "a directory"),
    ],
    ids=["empty", "file", "model"],
)
def test_existing_path_is_refused_with_the_cure(tmp_path, make, kind):
    make(tmp_path / "1")
    before = tree(tmp_path)
    with pytest.raises(PublishError) as caught, publish.staged(tmp_path / "1", overwrite=False):
        pytest.fail("the block must not run")
    assert str(caught.value) == (
        f"Cannot publish to '{tmp_path}/1': it exists ({kind}). Publish to '{tmp_path}/{{version}}' for the next free "
        "version, remove it, or pass overwrite=True where the function takes it."
    )
    assert caught.value.errno == errno.EEXIST
    assert tree(tmp_path) == before


def test_path_taken_while_the_block_ran_is_not_touched(base):
    with (
        pytest.raises(PublishError, match=r"it exists \(a directory\)"),
        publish.staged(f"{base}/1", overwrite=False) as staging,
    ):
        build(staging)
        publish_to(f"{base}/1", "theirs")
    assert read(f"{base}/1") == "theirs"
    assert [entry.rstrip("/") for entry in gfile.listdir(base)] == ["1"]


def test_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(PublishError) as caught:
        publish.check_publishable(tmp_path / "file" / "m" / "1", overwrite=False)
    assert str(caught.value) == (
        f"Cannot publish to '{tmp_path}/file/m/1': '{tmp_path}/file' is a file, expected a directory. Publish to a "
        "path below a directory."
    )


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a directory that not even root can write to")
def test_unwritable_parent_is_refused():
    with pytest.raises(PublishError) as caught:
        publish.check_publishable("/proc/m/{version}", overwrite=False)
    assert str(caught.value) == (
        "Cannot publish to '/proc/m/{version}': no file can be written in '/proc' (No such file or directory). Publish "
        "below a directory that this user can write to."
    )


def test_unknown_file_system_is_a_publish_error():
    with pytest.raises(PublishError) as caught:
        publish.check_publishable("nosuch://bucket/m/1", overwrite=False)
    assert str(caught.value) == (
        "Cannot publish to 'nosuch://bucket/m/1': File system scheme 'nosuch' not implemented ("
        "file: 'nosuch://bucket/m/1')."
    )


@pytest.mark.parametrize("path", [".", "..", "/", "a/..", "ram://bucket"])
def test_path_without_a_new_name_is_refused(path):
    with pytest.raises(PublishError, match="it names no new directory"):
        publish.check_publishable(path, overwrite=True)


@pytest.mark.parametrize("name", ["5", "{version}"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_published_inside_a_saved_model(base, name, overwrite):
    publish_to(f"{base}/1")
    before = sorted(gfile.listdir(f"{base}/1"))
    with pytest.raises(PublishError) as caught, publish.staged(f"{base}/1/{name}", overwrite=overwrite):
        pass
    assert str(caught.value) == (
        f"Cannot publish to '{base}/1/{name}': it would publish inside the SavedModel '{base}/1'. Publish beside it."
    )
    assert sorted(gfile.listdir(f"{base}/1")) == before


def test_check_publishable_leaves_nothing_behind(tmp_path):
    target = publish.check_publishable(tmp_path / "a" / "m" / "{version}", overwrite=False)
    assert target == str(tmp_path / "a" / "m" / "1")
    assert tree(tmp_path) == []


def test_relative_paths_are_published_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert publish_to("export") == "export"
    assert publish_to("./m/{version}") == "./m/1"
    assert publish_to("{version}/") == "1"
    assert sorted(os.listdir(tmp_path)) == ["1", "export", "m"]


# -- versions ----------------------------------------------------------------------------------------------------------


def test_next_version_reads_names_as_the_server_does(base):
    assert versions.resolve_version(f"{base}/{{version}}") == f"{base}/1"
    for name in ["2", "00000123", ".999", "v7", "12a", "-5", "3.5", "99999999999999999999", "٤٥٦"]:
        gfile.makedirs(f"{base}/{name}")
    assert versions.resolve_version(f"{base}/{{version}}") == f"{base}/124"
    with gfile.GFile(f"{base}/130", "w") as file:
        file.write("the server takes a file for a version too")
    assert versions.resolve_version(f"{base}/{{version}}") == f"{base}/131"


def test_next_version_ends_at_int64(tmp_path):
    (tmp_path / str(2**63 - 1)).mkdir()
    with pytest.raises(PublishError) as caught:
        versions.resolve_version(tmp_path / "{version}")
    assert str(caught.value) == (
        f"Cannot take the next version under '{tmp_path}/': 9223372036854775807 is the last one a server reads."
    )


def test_next_version_ignores_models_under_construction(tmp_path):
    with publish.staged(tmp_path / "5", overwrite=False) as staging:
        assert versions.resolve_version(tmp_path / "{version}") == str(tmp_path / "1")
        build(staging)
    assert versions.resolve_version(tmp_path / "{version}") == str(tmp_path / "6")


def test_version_counts_up(base):
    assert [publish_to(f"{base}/{{version}}") for _ in range(3)] == [f"{base}/{version}" for version in (1, 2, 3)]


@pytest.mark.parametrize(
    ("template", "there", "expected"),
    [
        ("{version}", ["4"], "5"),
        ("{version:08d}", ["00000004"], "00000005"),
        ("v{version}", ["v4", "9"], "v5"),
        ("{version}-3", ["4-3", "7-2"], "5-3"),
        ("{version}/{version}", ["4"], "5/5"),
        ("a{b}", ["4"], "a{b}"),
    ],
)
def test_resolve_version(tmp_path, template, there, expected):
    for name in there:
        (tmp_path / name).mkdir()
    assert versions.resolve_version(tmp_path / template) == str(tmp_path / expected)


def test_version_with_a_bad_format_is_refused(tmp_path):
    with pytest.raises(OptionsError) as caught:
        versions.resolve_version(f"{tmp_path}/{{version:s}}")
    assert str(caught.value) == (
        f"Bad path '{tmp_path}/{{version:s}}': '{{version:s}}' cannot format an integer (Unknown format code 's' for "
        "object of type 'int'). Use {version} or {version:08d}."
    )


def test_two_exporters_take_two_versions(base):
    with (
        publish.staged(f"{base}/{{version}}", overwrite=False) as one,
        publish.staged(f"{base}/{{version}}", overwrite=False) as two,
    ):
        build(one, "one")
        build(two, "two")
    assert (one.published, two.published) == (f"{base}/2", f"{base}/1")
    assert (read(f"{base}/1"), read(f"{base}/2")) == ("two", "one")


def test_version_taken_between_look_and_rename_gives_the_next(tmp_path, monkeypatch):
    rename = gfile.rename
    theirs = iter(["1", "2"])

    def overtaken(src, dst, overwrite=False):
        name = next(theirs, None)
        if name:
            build(tmp_path / name, "theirs")
        rename(src, dst, overwrite)

    monkeypatch.setattr(gfile, "rename", overtaken)
    assert publish_to(tmp_path / "{version}", "ours") == str(tmp_path / "3")
    assert [read(tmp_path / name) for name in "123"] == ["theirs", "theirs", "ours"]
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "3"]


@pytest.mark.parametrize("path", ["m/best", "gs://bucket/m/{epoch}-{val_loss:.2f}", "m/v{version}"])
def test_hint_for_a_name_no_server_loads(path):
    assert versions.version_hint(path) == (
        f"No TensorFlow Serving server loads '{path}': its last component is not an integer. Publish to '{path}/1' or "
        f"'{path}/{{version}}'."
    )


@pytest.mark.parametrize("path", ["m/1", "m/00000123", "m/{version}", "m/{epoch:03d}/", pathlib.Path("m/7"), "5"])
def test_no_hint_for_a_version(path):
    assert versions.version_hint(path) is None


# -- templates ---------------------------------------------------------------------------------------------------------


def test_format_filepath_fills_in_all_but_the_version():
    logs = {"val_loss": 0.12345, "accuracy": 0.5}
    assert versions.format_filepath("m-{epoch:02d}/{val_loss:.2f}/{version:04d}", 3, logs) == "m-03/0.12/{version:04d}"
    assert versions.format_filepath("m/{{a}}/{epoch}", 12) == "m/{a}/12"


def test_unknown_field_names_the_known_ones():
    with pytest.raises(OptionsError) as caught:
        versions.format_filepath("m/{vall_loss}/{acc:.1f}/{version}", 1, {"val_loss": 0.1, "loss": 0.2})
    assert str(caught.value) == (
        "Cannot fill in filepath 'm/{vall_loss}/{acc:.1f}/{version}': unknown fields {vall_loss}, {acc}. Known fields: "
        "{version}, {epoch}, {loss}, {val_loss}."
    )


def test_format_that_does_not_fit_is_refused():
    with pytest.raises(OptionsError) as caught:
        versions.format_filepath("m/{loss:d}", 1, {"loss": 0.2})
    assert str(caught.value) == (
        "Cannot fill in filepath 'm/{loss:d}': '{loss:d}' does not format a float (Unknown format code 'd' for object "
        "of type 'float')."
    )


@pytest.mark.parametrize("filepath", ["m/{}", "m/{0}", "m/{epoch.real}", "m/{epoch[0]}"])
def test_field_that_is_no_name_is_refused(filepath):
    field = filepath[2:]
    with pytest.raises(OptionsError) as caught:
        versions.fields_of(filepath)
    assert str(caught.value) == (
        f"Bad filepath '{filepath}': unknown fields {field}. Known fields: {{version}}, {{epoch}} and the names of the "
        "metrics, such as {val_loss:.2f}."
    )


def test_unmatched_brace_is_refused():
    with pytest.raises(OptionsError) as caught:
        versions.fields_of("m/{epoch")
    assert str(caught.value) == (
        "Bad filepath 'm/{epoch': expected '}' before end of string. Write fields as {version}, {epoch:02d} or "
        "{val_loss:.2f}, and a literal brace as {{ or }}."
    )


@pytest.mark.parametrize("filepath", ["m/{epoch:s}", "m/{version:s}"])
def test_integer_field_with_another_format_is_refused(filepath):
    with pytest.raises(OptionsError, match="Unknown format code 's' for object of type 'int'"):
        versions.fields_of(filepath)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (None, "A path must be a str or os.PathLike, got NoneType."),
        ("", "A path must not be empty."),
        ("a\0b", "A path must not hold a NUL byte, got 'a\\x00b'."),
        (
            pathlib.PurePosixPath("gs://b/m"),
            "The path 'gs:/b/m' was a URL before pathlib folded its slashes. Pass it as a str.",
        ),
    ],
    ids=["None", "empty", "NUL", "folded URL"],
)
def test_what_is_no_path_is_refused(path, text):
    with pytest.raises(OptionsError) as caught:
        versions.as_path(path)
    assert str(caught.value) == text


# -- removing and sweeping ---------------------------------------------------------------------------------------------


def test_remove_published(base):
    publish_to(f"{base}/1")
    publish_to(f"{base}/2")
    publish.remove_published(f"{base}/1")
    publish.remove_published(f"{base}/1")
    assert [entry.rstrip("/") for entry in gfile.listdir(base)] == ["2"]


def test_hidden_directories_of_killed_exports_are_swept_after_a_day(tmp_path):
    day_old = [".1.kw-0123456789abcdef", ".1.kw-old-0123456789abcdef", ".1.kw-mine", "1.kw-0123456789abcdef"]
    for name in [*day_old, ".2.kw-0123456789abcdef"]:
        build(tmp_path / name)
    for name in day_old:
        os.utime(tmp_path / name, (0, time.time() - 25 * 3600))
    publish_to(tmp_path / "2")
    assert sorted(os.listdir(tmp_path)) == sorted([*day_old[1:], ".2.kw-0123456789abcdef", "2"])
