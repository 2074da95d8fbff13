"""Takes each protection away, one at a time, and sees that its test fails. Run by name:

    python tests/mutations.py                 all of them; exit code 1 if a test did not notice
    python tests/mutations.py D13 D35         some
    python tests/mutations.py --table         the table of docs/faults.md, without running anything

A mutation replaces one place of the source in a temporary copy. The named tests must pass in the untouched
copy and fail in the mutated one. PyTorch is imported once and each run is a fork of that.
"""

import argparse
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutation:
    """A protection and the test that guards it.

    Attributes:
        fault: Id of the fault, unique together with `protection`.
        protection: What is done about it, in words.
        file: Below flowers_torch/, where the protection is.
        old: Text there, which occurs once.
        new: What removes the protection.
        test: Below tests/, as pytest takes it.
    """

    fault: str
    protection: str
    file: str
    old: str
    new: str
    test: str


LOOSE = '__import__("PIL.ImageFile").ImageFile.LOAD_TRUNCATED_IMAGES = True'
MUTATIONS = [
    Mutation(
        "D01", "a root that is no folder is refused, with the layout expected", "data/folder.py",
        "    if not root.is_dir():\n        what", "    if False:\n        what",
        "data/test_folder.py::test_missing_file_or_empty_root",
    ),
    Mutation(
        "D02", "class folders one level too deep: the right root is suggested", "data/folder.py",
        "    if deeper is not None:", "    if False:",
        "data/test_folder.py::test_photos_at_the_wrong_depth",
    ),
    Mutation(
        "D03", "empty class folders are refused, all named at once", "data/folder.py",
        "    if folder.empty:\n", "    if False:\n",
        "data/test_folder.py::test_all_empty_classes_are_named_at_once",
    ),
    Mutation(
        "D04", "dot-folders and system folders are no classes", "data/folder.py",
        'entry.name.startswith(".") or entry.name.lower() in LITTER_FOLDERS | LITTER_FILES', "False",
        "data/test_folder.py::test_litter_is_ignored_and_said",
    ),
    Mutation(
        "D05", "AppleDouble and other system files are ignored and counted", "data/folder.py",
        'litter[entry.name if len(entry.name) < 30 else "other hidden names"] += 1', "pass",
        "data/test_folder.py::test_litter_is_ignored_and_said",
    ),
    Mutation(
        "D06", "files of other formats are counted for each class", "data/folder.py",
        'other[os.path.splitext(path)[1].lower() or "no suffix"] += 1', "pass",
        "data/test_folder.py::test_litter_is_ignored_and_said",
    ),
    Mutation(
        "D07", "suffixes in any case", "data/images.py",
        "os.path.splitext(str(name))[1].lower()", "os.path.splitext(str(name))[1]",
        "data/test_folder.py::test_class_folders",
    ),
    Mutation(
        "D08", "the content decides what a file is, and says so where it is no photo", "data/images.py",
        "next((text for heads, text in kinds.items()", "next((text for heads, text in ()",
        "data/test_images.py::test_what_is_no_photo_is_named",
    ),
    Mutation(
        "D09", "empty files are named as such", "data/images.py",
        "    if not start:\n", "    if False:\n",
        "data/test_images.py::test_what_is_no_photo_is_named",
    ),
    Mutation(
        "D10", "a cut photo is an error, never a photo with a grey lower half", "data/images.py",
        "        image.load()\n        orientation",
        f"        {LOOSE}\n        image.load()\n        orientation",
        "data/test_images.py::test_a_cut_file_is_an_error_with_its_path",
    ),
    Mutation(
        "D11", "checksums and the end of a PNG are checked", "data/images.py",
        '        if image.format == "PNG":\n', "        if False:\n",
        "data/test_images.py::test_png_checksums_and_end_are_checked",
    ),
    Mutation(
        "D12", "Pillow's global settings stay as they are", "data/images.py",
        "BACKGROUND = (", LOOSE + "\nBACKGROUND = (",
        "data/test_images.py::test_our_package_leaves_pillows_settings_alone",
    ),
    Mutation(
        "D13", "pixels are counted before any is decoded, by a limit of our own", "data/images.py",
        "    if image.width * image.height > max_pixels:\n", "    if False:\n",
        "data/test_images.py::test_a_bomb_is_refused_before_decoding",
    ),
    Mutation(
        "D14", "only the listed decoders ever run", "data/images.py",
        "image = Image.open(file, formats=formats)", "image = Image.open(file)",
        "data/test_images.py::test_formats_outside_the_list_are_refused_though_pillow_reads_them",
    ),
    Mutation(
        "D15", "16 bits are scaled, not clipped", "data/images.py",
        "((values + 128) // 257).astype(np.uint8)", "values.clip(0, 255).astype(np.uint8)",
        "data/test_images.py::test_16_bit_grey_is_scaled_not_clipped",
    ),
    Mutation(
        "D16", "print colours become RGB", "data/images.py",
        'return image.copy() if image.mode == "RGB" else image.convert("RGB")', "return image.copy()",
        "data/test_images.py::test_one_bit_and_cmyk",
    ),
    Mutation(
        "D17", "transparency lies on white", "data/images.py",
        '    if image.has_transparency_data or image.mode in ("La", "RGBa"):\n', "    if False:\n",
        "data/test_images.py::test_transparency_shows_white",
    ),
    Mutation(
        "D17", "transparent colours of palettes too", "data/images.py",
        "    if image.has_transparency_data or image.mode in", "    if image.mode in",
        "data/test_images.py::test_transparent_palette_and_key_colours_show_white",
    ),
    Mutation(
        "D18", "pixel types without a range are refused by name", "data/images.py",
        '    if image.mode == "F":\n        raise DataError', '    if False:\n        raise DataError',
        "data/test_images.py::test_pixel_types_without_a_defined_range_are_refused_by_name",
    ),
    Mutation(
        "D19", "of several pictures the first counts, which is said once", "data/admission.py",
        ' or finding.kind == "several_frames"', "",
        "data/test_admission.py::test_animations_are_noted_once",
    ),
    Mutation(
        "D20", "photos are turned upright", "data/images.py",
        "return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb", "return rgb",
        "data/test_images.py::test_all_orientations_load_upright",
    ),
    Mutation(
        "D21", "malformed EXIF costs only the EXIF", "data/images.py",
        "    except Exception:  # malformed EXIF", "    except KeyboardInterrupt:  # malformed EXIF",
        "data/test_images.py::test_malformed_exif_costs_only_the_exif",
    ),
    Mutation(
        "D22", "of a long strip only the middle is used, and never the whole resized", "data/augment.py",
        "            LimitAspect(),\n            v2.Resize(math", "            v2.Resize(math",
        "data/test_augment.py::test_a_strip_is_never_resized_whole",
    ),
    Mutation(
        "D23", "circles of links end, a folder linked twice counts once", "data/folder.py",
        "            if identity not in seen:\n", "            if True:\n",
        "data/test_folder.py::test_links",
    ),
    Mutation(
        "D23", "dangling links are reported", "data/folder.py",
        '                except FileNotFoundError:\n                    other["dangling link"] += 1\n',
        "                except FileNotFoundError:\n",
        "data/test_folder.py::test_links",
    ),
    Mutation(
        "D24", "unreadable folders are named", "data/folder.py",
        "except OSError as error:\n        where", "except KeyError as error:\n        where",
        "data/test_folder.py::test_an_unreadable_folder_is_named_even_to_root",
    ),
    Mutation(
        "D25", "control characters of names never reach the terminal", "errors.py",
        'c if c.isprintable() else c.encode("unicode_escape").decode()', "c",
        "data/test_images.py::test_control_characters_in_names_stay_out_of_messages",
    ),
    Mutation(
        "D25", "names that are no UTF-8 survive in files", "files.py",
        'file.write(text.encode("utf-8", "surrogateescape"))', 'file.write(text.encode("utf-8"))',
        "data/test_audit.py::test_hostile_names_in_every_output",
    ),
    Mutation(
        "D26", "pipes and devices are never opened", "data/images.py",
        "            if not stat.S_ISREG(mode):\n", "            if stat.S_ISCHR(mode):\n",
        "data/test_images.py::test_what_is_not_regular_is_not_opened",
    ),
    Mutation(
        "D26", "pipes and sockets are no photos of a class", "data/folder.py",
        "                elif stat.S_ISREG(mode):\n", "                elif True:\n",
        "data/test_folder.py::test_pipes_and_sockets_are_left_out",
    ),
    Mutation(
        "D27", "the same picture under two labels or in two parts is found", "data/audit.py",
        "    if contradicting:\n", "    if False:\n",
        "data/test_audit.py::test_each_planted_trouble_is_found_and_nothing_else",
    ),
    Mutation(
        "D27", "twins across the parts of a split are found", "data/audit.py",
        "    if leaking:\n", "    if False:\n",
        "data/test_audit.py::test_twins_across_the_parts_of_a_split",
    ),
    Mutation(
        "D28", "parts with other classes than train are refused with the difference", "data/folder.py",
        "        if missing or extra:\n", "        if False:\n",
        "data/test_folder.py::test_classes_that_differ_between_parts_are_an_error",
    ),
    Mutation(
        "D29", "Rose and rose are said to be two classes", "data/folder.py",
        "        if len(names) > 1\n", "        if False\n",
        "data/test_folder.py::test_nearly_equal_class_names_are_said",
    ),
    Mutation(
        "D30", "one class is not enough", "data/folder.py",
        "    if len(folder.classes) < fewest:\n", "    if False:\n",
        "data/test_folder.py::test_one_class_only",
    ),
    Mutation(
        "D30", "a class with fewer photos than parts is refused", "data/splits.py",
        "    if count < len(wanted):\n", "    if False:\n",
        "data/test_splits.py::test_a_class_too_small_for_the_parts_is_named",
    ),
    Mutation(
        "D30", "the ragged last batch is trained on", "data/loaders.py",
        "list(range(0, self.count, self.batch_size))",
        "list(range(0, self.count - self.batch_size + 1, self.batch_size))",
        "data/test_loaders.py::test_no_photo_is_dropped_and_none_is_alone",
    ),
    Mutation(
        "D31", "photos that changed since a run began are refused with counts", "resuming.py",
        "            if not allow_data_change:\n", "            if False:\n",
        "test_recipe.py::test_a_photo_that_goes_missing_during_training_costs_no_step",
    ),
    Mutation(
        "D31", "an edit is noticed even where the size stays", "data/split_file.py",
        "b\"%d\\0\" % size + start + end", 'b"%d\\0" % size',
        "data/test_split_file.py::test_changes_are_counted_by_part_and_refused",
    ),
    Mutation(
        "D32", "a photo that goes missing during training costs no step", "stage.py",
        "            saver.save(training)\n            raise\n        sums",
        "            raise\n        sums",
        "test_recipe.py::test_a_photo_that_goes_missing_during_training_costs_no_step",
    ),
    Mutation(
        "D33", "a class whose photos are all bad is named", "data/audit.py",
        "    if empty:\n        what = f\"the quarantine", "    if False:\n        what = f\"the quarantine",
        "data/test_admission.py::test_all_of_a_class_bad",
    ),
    Mutation(
        "D34", "a photo that crashes its decoder costs only itself", "data/scan.py",
        "except (BrokenPipeError, EOFError, TimeoutError):", "except (BrokenPipeError, TimeoutError):",
        "data/test_audit.py::test_a_photo_that_kills_or_stalls_the_decoder_costs_only_itself",
    ),
    Mutation(
        "D34", "a photo that stalls its decoder too", "data/scan.py",
        "            if not selector.select(seconds):\n                raise TimeoutError\n",
        "            selector.select(min(seconds, 5))\n",
        "data/test_audit.py::test_a_photo_that_kills_or_stalls_the_decoder_costs_only_itself",
    ),
    Mutation(
        "D35", "paths that lead out of an archive's folder are refused", "data/archives.py",
        'if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0] or "\\0" in name:', "if False:",
        "data/test_archives.py::test_paths_that_lead_outside",
    ),
    Mutation(
        "D35", "paths that lead out of a shard are refused", "data/tar_members.py",
        'if name.is_absolute() or ".." in name.parts or not name.parts or "\\0" in member.name:', "if False:",
        "data/test_shards.py::test_shards_that_cannot_be_used",
    ),
    Mutation(
        "D36", "links and devices in a tar are refused", "data/archives.py",
        'raise target.refuse(f"holds a link, device or sparse file: {printable(member.name)}")', "pass",
        "data/test_archives.py::test_links_and_devices_in_a_tar",
    ),
    Mutation(
        "D36", "links in a zip are refused", "data/archives.py",
        "            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):\n", "            if False:\n",
        "data/test_archives.py::test_links_in_a_zip",
    ),
    Mutation(
        "D37", "archives that unpack to too much are refused", "data/archives.py",
        "                if self.bytes > self.max_bytes:\n", "                if False:\n",
        "data/test_archives.py::test_bombs",
    ),
    Mutation(
        "D37", "archives of too many members are refused", "data/archives.py",
        "        if self.members > self.max_members:\n", "        if False:\n",
        "data/test_archives.py::test_bombs",
    ),
    Mutation(
        "D38", "a download with a wrong checksum is deleted", "files.py",
        "    if not found.startswith(digest):\n        part.unlink()", "    if False:\n        part.unlink()",
        "data/test_flowers17.py::test_a_wrong_checksum_leaves_nothing",
    ),
    Mutation(
        "D38", "a cut download is noticed and continued", "files.py",
        "    if total and have < total:\n", "    if False:\n",
        "data/test_flowers17.py::test_a_cut_download_is_continued",
    ),
    Mutation(
        "D38", "a web page instead of an archive is named", "data/archives.py",
        '"is a web page, not an archive" if start.lstrip()[:1] == b"<" else "is no tar or zip archive"',
        '"is no tar or zip archive"',
        "data/test_archives.py::test_what_is_no_archive",
    ),
    Mutation(
        "D39", "what was being unpacked when a run was killed never counts as ready", "data/archives.py",
        "staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix, suffix=\".partial\"))",
        "folder.mkdir(exist_ok=True); staging = folder",
        "data/test_archives.py::test_killed_while_unpacking_counts_as_nothing",
    ),
    Mutation(
        "E01", "an .onnx file holds all its weights", "deploy/onnx_file.py",
        "    model = program.model_proto\n",
        "    model = program.model_proto\n"
        '    helper = need("onnx.external_data_helper")\n'
        "    helper.convert_model_to_external_data(model, size_threshold=0)\n",
        "deploy/test_onnx_file.py::test_a_lone_file_is_complete",
    ),
    Mutation(
        "E02", "an export that answers otherwise than the network is not written", "deploy/export.py",
        '    require(parity, path)\n    metadata["check"]', '    metadata["check"]',
        "deploy/test_export.py::test_a_network_that_exports_wrong_leaves_no_file",
    ),
    Mutation(
        "E02", "the worst photo of all batches decides, and NaN is no agreement", "deploy/parity.py",
        "return self.logits <= self.tolerance * self.largest",
        "return not self.logits > self.tolerance * self.largest",
        "deploy/test_export.py::test_parity_sees_the_worst_photo_of_all_batches",
    ),
    Mutation(
        "E03", "batches of any number", "deploy/onnx_file.py",
        "{0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}", "{1: Dim.DYNAMIC, 2: Dim.DYNAMIC}",
        "deploy/test_onnx_file.py::test_any_number_of_photos_of_any_size",
    ),
    Mutation(
        "E04", "missing packages are named with the line that installs them", "deploy/onnx_file.py",
        "    except ImportError as error:\n", "    except ZeroDivisionError as error:\n",
        "deploy/test_onnx_file.py::test_a_missing_package_is_named_with_its_install_line",
    ),
    Mutation(
        "E05", "names, preprocessing and limits travel in the file", "deploy/onnx_file.py",
        '        "preprocessing": dataclasses.asdict(record.preprocessing),\n', "",
        "deploy/test_onnx_file.py::test_the_metadata_say_all_that_is_needed",
    ),
    Mutation(
        "E06", "weights that are not finite are not exported", "models/classifier.py",
        "[name for name, value in state.items() if not bool(value.isfinite().all())]", "[]",
        "deploy/test_export.py::test_weights_that_are_not_finite",
    ),
    Mutation(
        "E07", "no .onnx file makes another file be read", "deploy/onnx_file.py",
        "        if outside is not None:\n", "        if False:\n",
        "deploy/test_onnx_file.py::test_weights_outside_of_the_file_are_refused",
    ),
    Mutation(
        "E07", "a damaged .onnx file is called so", "deploy/onnx_file.py",
        "    except Exception as error:  # protobuf", "    except ZeroDivisionError as error:  # protobuf",
        "deploy/test_onnx_file.py::test_cut_and_altered_files",
    ),
    Mutation(
        "H01", "what is fetched for torch.hub needs a checksum", "deploy/hub.py",
        "        if not digest:\n", "        if False:\n",
        "test_hubconf.py::test_address_needs_a_real_hash",
    ),
    Mutation(
        "H02", "what comes with a wrong checksum is not kept", "files.py",
        "    if not found.startswith(digest):\n        part.unlink()", "    if False:\n        part.unlink()",
        "test_hubconf.py::test_wrong_hash_from_an_address_leaves_nothing",
    ),
    Mutation(
        "H03", "importing hubconf only imports and defines", "../hubconf.py",
        "dependencies = [", 'print("hello")\ndependencies = [',
        "test_hubconf.py::test_hubconf_imports_and_defines_and_no_more",
    ),
    Mutation(
        "H04", "no hub command that we show waits for an answer", "../hubconf.py",
        '"resnet50", trust_repo=True,', '"resnet50",',
        "test_hubconf.py::test_no_command_that_we_show_asks_whom_to_trust",
    ),
    Mutation(
        "H05", "a warm cache needs no network", "files.py",
        "    if path.exists():\n        check_digest", "    if False:\n        check_digest",
        "test_hubconf.py::test_classifier_from_an_address_with_its_hash",
    ),
]  # fmt: skip

# Checkpoints (C), runtime (R), configuration and command line (K), several processes (T). What only a kill, a
# signal or a disk can show is in tests/crash.
MUTATIONS += [
    Mutation(
        "C01", "an empty or cut file is refused as such", "files.py",
        "    if len(start) < 16:\n", "    if False:\n",
        "training/test_checkpoint.py::test_the_state_before_is_kept_and_found_where_the_newest_is_damaged",
    ),
    Mutation(
        "C03", "a checksum of our own over all that a file holds", "files.py",
        "    if stated != json.dumps(_checksum(tensors, texts)):", "    if False:",
        "test_files.py::test_every_flipped_byte_is_noticed_or_harmless",
    ),
    Mutation(
        "C04", "no code is run from a pickle, and no way around it is recommended", "files.py",
        "weights_only=True)", "weights_only=False)",
        "test_files.py::test_malicious_pickle_is_refused_without_bad_advice",
    ),
    Mutation(
        "C05", "there is no other loader in the package", "files.py",
        "weights_only=True)", "**{'weights_only': True})",
        "test_architecture.py::test_nothing_that_runs_foreign_code_is_called",
    ),
    Mutation(
        "C06", "the environment cannot make torch unsafe", "files.py",
        "weights_only=True)", "weights_only=None)",
        "test_files.py::test_malicious_pickle_is_refused_without_bad_advice",
    ),
    Mutation(
        "C07", "a torch that is not safe opens no .pth", "files.py",
        "SAFE_TORCH = (2, 10)", "SAFE_TORCH = (0, 0)",
        "test_files.py::test_a_torch_too_old_to_be_safe_opens_no_pth",
    ),
    Mutation(
        "C08", "other archives are called what they are", "files.py",
        "    if kind := _other_zip(path):\n", "    if kind := '':\n",
        "test_files.py::test_other_archives_are_refused_by_name",
    ),
    Mutation(
        "C09", "an archive that grows when it is read is refused", "files.py",
        "    if any(member.compress_type != zipfile.ZIP_STORED for member in members):\n", "    if False:\n",
        "test_files.py::test_greedy_files_are_refused_cheaply",
    ),
    Mutation(
        "C10", "weights that do not fit are refused whole, with names", "models/classifier.py",
        "    if said:\n", "    if False:\n",
        "models/test_classifier.py::test_weights_that_do_not_fit_are_listed_and_not_loaded",
    ),
    Mutation(
        "C11", "prefixes of DataParallel and torch.compile are dropped", "files.py",
        'name.removeprefix("module.")', "name",
        "test_files.py::test_foreign_pth_is_unwrapped",
    ),
    Mutation(
        "C12", "weights that are not finite are refused", "models/classifier.py",
        "if not bool(value.isfinite().all())", "if False",
        "models/test_classifier.py::test_nan_is_refused",
    ),
    Mutation(
        "C13", "weights of a newer format ask for an update", "models/classifier.py",
        '    if metadata.get("format", 0) > FORMAT:\n', "    if False:\n",
        "models/test_classifier.py::test_a_newer_format_asks_for_an_update",
    ),
    Mutation(
        "C13", "so do saved states", "training/checkpoint.py",
        '        "format": FORMAT,\n', "",
        "training/test_checkpoint.py::test_a_state_of_a_newer_version_is_refused",
    ),
    Mutation(
        "C15", "names from strangers cannot reach the terminal", "errors.py",
        'c.encode("unicode_escape").decode()', "c",
        "test_files.py::test_names_from_strangers_cannot_reach_the_terminal",
    ),
    Mutation(
        "C16", "a folder that cannot be written is found before anything is trained", "run_folder.py",
        "        folder.mkdir(parents=True, exist_ok=True)\n    except OSError as error:",
        "        folder.mkdir(parents=True, exist_ok=True)\n    except ZeroDivisionError as error:",
        "test_run_folder.py::test_a_folder_that_cannot_be_written",
    ),
    Mutation(
        "C16", "so is a disk too small for the saves", "training/checkpoint.py",
        "        if free < needed:\n", "        if False:\n",
        "training/test_checkpoint.py::test_room_for_the_saves_is_looked_for_before_a_stage",
    ),
    Mutation(
        "C17", "a write that fails leaves nothing behind", "files.py",
        "                temporary.unlink(missing_ok=True)\n", "                pass\n",
        "test_files.py::test_a_failed_write_leaves_the_old_file_and_no_other",
    ),
    Mutation(
        "C17", "a full disk is left to the save; the log does not flood the terminal", "training/monitors.py",
        "    def handleError(self, record: logging.LogRecord) -> None:\n        pass\n", "",
        "training/test_monitors.py::test_a_full_disk_is_left_to_the_save",
    ),
    Mutation(
        "C18", "what a killed run was writing is cleared away", "run_folder.py",
        "            stray.unlink(missing_ok=True)\n", "            pass\n",
        "test_run_folder.py::test_a_second_run_is_refused_until_the_first_is_dead",
    ),
    Mutation(
        "C19", "a file is on the disk before it takes its name", "files.py",
        "            file.flush()\n            os.fsync(file.fileno())\n        # Named", "        # Named",
        "test_files.py::test_a_save_writes_syncs_renames_and_syncs_the_folder",
    ),
    Mutation(
        "C20", "one run at a time in a folder; a dead one's lock is free", "run_folder.py",
        "                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "                pass\n",
        "test_run_folder.py::test_a_second_run_is_refused_until_the_first_is_dead",
    ),
    Mutation(
        "C21", "the state before the newest is kept", "training/checkpoint.py",
        ", previous=path.with_name(PREVIOUS_FILE))", ")",
        "training/test_checkpoint.py::test_the_state_before_is_kept_and_found_where_the_newest_is_damaged",
    ),
    Mutation(
        "R01", "the first signal is noted and acted on after the step", "training/stopping.py",
        "        request.number = number\n", "        pass\n",
        "training/test_stopping.py::test_the_first_signal_is_noted_and_the_second_acts",
    ),
    Mutation(
        "R02", "a second signal acts at once", "training/stopping.py",
        "        if not patient:\n            put_back()\n",
        "        pass\n",
        "training/test_stopping.py::test_the_first_signal_is_noted_and_the_second_acts",
    ),
    Mutation(
        "R04", "handlers are put back", "training/stopping.py",
        "    finally:\n        put_back()\n", "    finally:\n        pass\n",
        "training/test_stopping.py::test_handlers_come_back_after_an_error",
    ),
    Mutation(
        "R05", "a reader that leaves does not end the training", "training/monitors.py",
        "contextlib.suppress(BrokenPipeError)", "contextlib.suppress(ZeroDivisionError)",
        "training/test_monitors.py::test_nobody_reads_and_nowhere_to_write",
    ),
    Mutation(
        "R06", "a loss or gradient that is not finite stops before the update", "training/steps.py",
        "    if problem := _problem(training, loss, bool(finite_gradient)):\n", "    if problem := '':\n",
        "training/test_engine.py::test_numbers_that_are_not_finite_stop_before_the_update",
    ),
    Mutation(
        "R06", "where steps are read now and then, a failed one and those behind it touch nothing",
        "training/engine.py",
        "(training.failed | gradient_is_wrong).float()", "(training.failed & gradient_is_wrong).float()",
        "training/test_steps.py::test_sound_steps_behind_a_failed_one_touch_nothing_either",
    ),
    Mutation(
        "R06", "step and photos are named", "training/steps.py",
        "at learning rate {outcome.lr:.3g}{outcome.where()}", "at learning rate {outcome.lr:.3g}",
        "training/test_engine.py::test_divergence_names_the_step_and_the_photos",
    ),
    Mutation(
        "R07", "loss scaling that skips for ever is noticed", "training/steps.py",
        "    training.skipped += 1\n", "",
        "training/test_engine.py::test_loss_scaling_that_skips_for_ever_is_noticed",
    ),
    Mutation(
        "R08", "NaN is never best", "training/checkpoint.py",
        'return math.isfinite(loss) and (', "return (",
        "training/test_checkpoint.py::test_best_is_by_loss_and_nan_never_is",
    ),
    Mutation(
        "R09", "lack of GPU memory halves the micro-batch", "training/engine.py",
        "        except torch.OutOfMemoryError:\n", "        except ZeroDivisionError:\n",
        "training/test_engine.py::test_out_of_memory_halves_the_micro_batch_and_changes_no_gradient",
    ),
    Mutation(
        "R10", "which is remembered", "training/checkpoint.py",
        "min(filter(None, (training.micro_batch, saved.micro_batch)), default=0)", "training.micro_batch",
        "training/test_checkpoint.py::test_a_micro_batch_that_memory_allowed_is_kept",
    ),
    Mutation(
        "R11", "of several processes one without memory ends all", "training/engine.py",
        "if at_once <= 2 or training.world.size > 1:",
        "if at_once <= 2:",
        "training/test_engine.py::test_out_of_memory_in_one_of_several_processes_ends_it",
    ),
    Mutation(
        "R12", "the death of a worker is explained", "data/workers.py",
        '    if text.startswith("DataLoader worker"):\n', "    if False:\n",
        "data/test_workers.py::test_a_worker_s_end_is_explained",
    ),
    Mutation(
        "R13", "so is a lack of shared memory", "data/workers.py",
        "    if any(sign in text for sign in lacks_memory):\n", "    if False:\n",
        "data/test_workers.py::test_a_worker_s_end_is_explained",
    ),
    Mutation(
        "R14",
        "workers that hang end the run, with the photos they began; slow ones do not", "data/workers.py",
        '                if "timed out after" not in str(error):\n', "                if True:\n",
        "data/test_workers.py::test_slow_is_not_stuck",
    ),
    Mutation(
        "R15", "an error of a worker keeps its message", "errors.py",
        '        if "\\nOriginal Traceback" in what:\n', "        if False:\n",
        "test_files.py::test_errors_survive_a_data_loader_worker",
    ),
    Mutation(
        "R16", "weights that cannot be fetched end the run with ways on", "models/weights.py",
        "        raise ResourceError(\n            f\"cannot fetch ImageNet",
        "        raise ModelFileError(\n            f\"cannot fetch ImageNet",
        "models/test_weights.py::test_imagenet_weights_without_network",
    ),
    Mutation(
        "R17", "what was fetched earlier is checked again", "files.py",
        "    if not found.startswith(digest):\n        what =",
        "    if False:\n        what =",
        "test_files.py::test_a_file_that_was_fetched_earlier_is_checked",
    ),
    Mutation(
        "R18", "a precision that the device has not is refused", "training/runtime.py",
        '    if precision == "fp16" and place.type != "cuda":\n', "    if False:\n",
        "training/test_runtime.py::test_what_is_not_there_is_refused",
    ),
    Mutation(
        "R19", "an operation without a deterministic form is named", "training/runtime.py",
        "        if \"deterministic\" not in str(error):\n",
        "        if True:\n",
        "training/test_runtime.py::test_an_operation_without_a_deterministic_form_is_named",
    ),
    Mutation(
        "R20", "what makes going on inexact is refused with a table", "resuming.py",
        "    if not allow:\n", "    if False:\n",
        "test_resuming.py::test_what_does_is_refused_with_a_table_or_allowed_by_a_flag",
    ),
    Mutation(
        "R21", "a finished run has nothing to resume", "recipe.py",
        '        if (folder / "metrics.json").is_file():\n', "        if False:\n",
        "test_recipe.py::test_a_finished_run_has_nothing_to_resume",
    ),
    Mutation(
        "R22", "a resumed epoch goes on behind the last step", "data/loaders.py",
        "[self.skip :]:",
        "[:]:",
        "data/test_loaders.py::test_a_resumed_epoch_is_the_rest_of_the_whole_one",
    ),
    Mutation(
        "R23", "a damaged newest state falls back to the one before", "training/checkpoint.py",
        "            damaged = error\n            continue\n", "            raise\n",
        "training/test_checkpoint.py::test_the_state_before_is_kept_and_found_where_the_newest_is_damaged",
    ),
    Mutation(
        "R24", "a state of another stage's parameters is refused", "training/checkpoint.py",
        "    if strangers:\n", "    if False:\n",
        "training/test_checkpoint.py::test_another_stage_s_optimiser_is_refused",
    ),
    Mutation(
        "K01", "unknown flags get their nearest name", "cli.py",
        "near = difflib.get_close_matches(unknown[0], known, n=1) if unknown else []",
        "near: list[str] = []",
        "test_cli.py::test_mistakes_of_training",
    ),
    Mutation(
        "K02", "values out of range are refused, with the range", "config.py",
        "            if name in RANGES and not low <= value <= high:\n", "            if False:\n",
        "test_config.py::test_values_out_of_range_are_named",
    ),
    Mutation(
        "K03", "a file that is no TOML is named, with the place", "config.py",
        "    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:",
        "    except UnicodeDecodeError as error:",
        "test_config.py::test_broken_files_are_named",
    ),
    Mutation(
        "K04", "a folder that holds another run is left alone", "run_folder.py",
        "            if not overwrite:\n", "            if False:\n",
        "test_recipe.py::test_an_earlier_run_is_not_overwritten",
    ),
    Mutation(
        "K05", "flags that contradict each other are refused", "commands/train.py",
        "    if args.resume and (args.origin or args.config or args.dry_run or args.overwrite):\n",
        "    if False:\n",
        "test_cli.py::test_mistakes_of_training",
    ),
    Mutation(
        "K06", "~ in a path is the home folder", "data/sources.py",
        "path = Path(source).expanduser()",
        "path = Path(source)",
        "data/test_sources.py::test_paths_as_people_type_them",
    ),
    Mutation(
        "K07", "nothing to predict is a mistake", "deploy/predict.py",
        "        if not matches:\n            raise",
        "        if False:\n            raise",
        "deploy/test_predict.py::test_files_folders_and_globs",
    ),
    Mutation(
        "K08", "photos that cannot be read end prediction with 3, the others answered", "commands/predict.py",
        "return DataError.exit_code if failed else 0",
        "return 0",
        "test_cli.py::test_bad_photos_end_with_3_and_the_good_ones_answered",
    ),
    Mutation(
        "K09", "--json is JSON in every failure", "cli.py",
        "    if as_json and sys.stdout is not None:",
        "    if False:",
        "test_cli.py::test_json_is_valid_in_every_failure",
    ),
    Mutation(
        "T02", "when one process is lost the others end, and are quiet", "training/distributed.py",
        "            raise PeerLostError() from error\n", "            raise\n",
        "training/test_distributed.py::test_a_lost_process_ends_the_others",
    ),
    Mutation(
        "T03", "validation counts every photo once", "training/distributed.py",
        ".flatten(0, 1)[:count]", ".flatten(0, 1)",
        "training/test_distributed.py::test_shares_cover_everything_and_are_gathered_in_order",
    ),
    Mutation(
        "T05", "processes that are about to do different things do not begin", "training/distributed.py",
        "                if theirs.get(name) != value:\n", "                if False:\n",
        "training/test_distributed.py::test_different_facts_are_refused_by_the_main_process",
    ),
    Mutation(
        "T06", "each epoch has its own order, which an interruption does not change", "data/loaders.py",
        "counted_seed(self.seed, self.epoch, -1)",
        "counted_seed(self.seed, 0, -1)",
        "data/test_loaders.py::test_epochs_and_seeds_differ",
    ),
    Mutation(
        "T08", "another number of processes is not exact", "resuming.py",
        '    facts["processes"] = str(processes)\n', "",
        "test_resuming.py::test_the_machine_counts",
    ),
    Mutation(
        "T09", "half an environment of torchrun is refused", "training/distributed.py",
        "    if missing := [name for name in ENVIRONMENT if name not in os.environ]:\n",
        "    if missing := []:\n",
        "training/test_distributed.py::test_half_an_environment_is_refused",
    ),
    Mutation(
        "T10", "processes of one machine listen on its loopback only", "training/distributed.py",
        'os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)',
        'os.environ.setdefault("GLOO_SOCKET_IFNAME", "")',
        "training/test_distributed.py::test_the_main_process_goes_first_and_tells",
    ),
]  # fmt: skip

# Updating (D) and the server (H).
MUTATIONS += [
    Mutation(
        "D27", "new photos that would spoil the test of a trained model are refused", "data/growth.py",
        "                if wanted != other.part:\n", "                if False:\n",
        "data/test_growth.py::test_what_would_spoil_a_test_is_refused",
    ),
    Mutation(
        "D28", "the rows of a head go by the names of its classes", "models/weights.py",
        "found[name][row] = state[name][place[label]]", "found[name][row] = state[name][row % len(theirs)]",
        "models/test_weights.py::test_the_head_s_rows_go_by_the_names_of_the_classes",
    ),
    Mutation(
        "H06", "the server listens on this machine only", "commands/serve.py",
        'default="127.0.0.1"', 'default="0.0.0.0"',
        "deploy/test_serve.py::test_it_listens_on_this_machine_only_unless_told",
    ),
    Mutation(
        "H06", "under no name that a site of strangers could point to it", "deploy/guard.py",
        "        if not self.knows(host):\n", "        if False:\n",
        "deploy/test_serve.py::test_other_sites_are_turned_away",
    ),
    Mutation(
        "H06", "and to no page of another site", "deploy/guard.py",
        '        elif origin not in (None, f"http://{host}", f"https://{host}"):\n', "        elif False:\n",
        "deploy/test_serve.py::test_other_sites_are_turned_away",
    ),
    Mutation(
        "H06", "a body too large is refused before it is read", "deploy/guard.py",
        "        if received > most:\n", "        if False:\n",
        "deploy/test_serve.py::test_a_body_too_large_is_refused_before_it_is_read",
    ),
    Mutation(
        "H06", "so is a photo too large", "deploy/serve.py",
        "small = file.size is not None and file.size <= most", "small = True",
        "deploy/test_serve.py::test_bad_photos_have_their_reason_and_good_ones_their_answer",
    ),
    Mutation(
        "H06", "and one of too many pixels", "deploy/serve.py",
        "load_image(file, self.limits.pixels,", "load_image(file, MAX_PIXELS,",
        "deploy/test_serve.py::test_pixels_are_counted_by_the_server_s_own_limit",
    ),
    Mutation(
        "H06", "a full queue says so instead of growing", "deploy/serve.py",
        "            if self.held + photos > self.limits.waiting:\n", "            if False:\n",
        "deploy/test_serve.py::test_a_full_queue_says_so",
    ),
    Mutation(
        "H06", "names from strangers are escaped and cut in answers", "deploy/serve.py",
        "photos.append((printable(file.filename),", "photos.append((str(file.filename),",
        "deploy/test_serve.py::test_hostile_names_come_back_harmless",
    ),
    Mutation(
        "H07", "a bad photo is an answer with its reason", "deploy/serve.py",
        "        except FlowersError as error:\n", "        except ZeroDivisionError as error:\n",
        "deploy/test_serve.py::test_bad_photos_have_their_reason_and_good_ones_their_answer",
    ),
    Mutation(
        "H07", "a batch that fails costs only itself", "deploy/batching.py",
        "            except Exception as error:", "            except ZeroDivisionError as error:",
        "deploy/test_batching.py::test_a_batch_that_fails_costs_only_itself",
    ),
    Mutation(
        "H08", "a fixed table of files can be reached and nothing else", "deploy/serve.py",
        "    return Route(path, give)\n", '    return Route("/{path:path}", give)\n',
        "deploy/test_serve.py::test_only_the_page_s_own_files_can_be_reached",
    ),
]  # fmt: skip


def table() -> str:
    """The page's table: fault, protection, test."""
    rows = [f"| {m.fault} | {m.protection} | `{m.test}` |" for m in MUTATIONS]
    return "\n".join(["| id | protection | test that fails without it |", "|---|---|---|", *rows])


def copy_project(target: Path) -> None:
    """The package, its recipes and its tests."""
    for name in ("flowers_torch", "tests", "configs"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "train.py", "hubconf.py"):
        shutil.copy(ROOT / name, target / name)


def run_tests(project: Path, tests: list[str], log: Path) -> int:
    """pytest's exit code for tests, in a forked process whose package is that of `project`."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        os.chdir(project)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.path.insert(0, str(project))
        os.environ["PYTHONPATH"] = str(project)  # for programs that the tests start
        sys.dont_write_bytecode = True
        import pytest

        options = ["-q", "-x", "-p", "no:cacheprovider", "--rootdir", str(project)]
        code = pytest.main([*options, *(f"tests/{test}" for test in tests)])
    finally:
        os._exit(int(code))


def main() -> int:
    """Runs the mutations that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="*", help="ids, as D13; all without")
    parser.add_argument("--table", action="store_true", help="print the table of docs/faults.md")
    args = parser.parse_args()
    if args.table:
        print(table())
        return 0
    chosen = [m for m in MUTATIONS if not args.faults or m.fault in args.faults]
    import numpy  # noqa: F401 - imported once, here, for all forks
    import pytest  # noqa: F401
    import torchvision  # noqa: F401

    failures = []
    with tempfile.TemporaryDirectory() as temporary:
        project, log = Path(temporary) / "project", Path(temporary) / "log.txt"
        copy_project(project)
        if run_tests(project, list(dict.fromkeys(m.test for m in chosen)), log):
            failures.append("a test fails without any mutation")
            print(log.read_text()[-3000:])
        for m in chosen:
            path = project / "flowers_torch" / m.file
            text = path.read_text(encoding="utf-8")
            if text.count(m.old) != 1:
                verdict = f"the text to replace is there {text.count(m.old)} times"
            else:
                log.unlink(missing_ok=True)
                path.write_text(text.replace(m.old, m.new), encoding="utf-8")
                code = run_tests(project, [m.test], log)
                path.write_text(text, encoding="utf-8")
                verdict = {0: "NOT NOTICED", 1: "noticed"}.get(code, f"pytest ended with {code}")
            print(f"{m.fault}  {verdict:12}  {m.protection}", flush=True)
            if verdict != "noticed":
                failures.append(f"{m.fault} ({m.protection}): {verdict}")
                print(log.read_text()[-2000:] if log.exists() else "")
    print(f"{len(chosen)} mutations, {len(failures)} problems", *failures, sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
