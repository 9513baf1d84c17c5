#!/usr/bin/env python3
"""Reads repositories: the format in a second language, written from docs/repository-format.md and docs/sendstream.md alone.

  reader.py REPOSITORY CLUSTER [--key FILE | --passphrase FILE] list
  reader.py REPOSITORY CLUSTER [--key ... | --passphrase ...] check              every hash of every set
  reader.py REPOSITORY CLUSTER [--key ... | --passphrase ...] restore SET DIR

REPOSITORY is a folder. `restore` writes each volume's files to DIR/IMAGE, the set's own files to DIR/@files, and streams that
were sent raw to DIR/IMAGE.GUID.zfs. It exists to prove that the documentation is complete: a test compares its restores with
Lockstep's. It holds the indexes of a set in memory, and stops at the first thing that differs from the documentation.
"""

import argparse
import io
import json
import os
import stat
import struct
import sys
from collections import defaultdict

import pyarrow.parquet
import zstandard
from argon2.low_level import Type, hash_secret_raw
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

END = 2**64 - 1
NUMBER = (1 << 48) - 1          # the object in a directory's entry
OLD_MOST = 128 << 10            # the largest block of a stream without -L
PLAIN_FILE = 19
ZNODE, ATTRIBUTES = 17, 44      # types of a bonus
HAS_SPILL = 4                   # DRR_OBJECT_SPILL
LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Damaged(Exception):
    """Something isn't as the documentation says."""


def need(is_so, *what):
    if not is_so:
        raise Damaged(" ".join(str(word) for word in what))


def derive(context, material):
    return blake3(material, derive_key_context=context).digest()


def read_file(path):
    with open(path, "rb") as file:
        return file.read()


# ---- JSON objects, and the data key


def document(data, path, mac_key=None):
    """Returns the body of a JSON object after checking its hash or code."""
    head = b'{"body":'
    tail = b',"%s":"' % (b"mac" if mac_key else b"blake3")
    end = len(data) - 66 - len(tail)
    is_one = data.startswith(head) and data.endswith(b'"}') and data[end:-66] == tail
    need(is_one, path, "is no object with this kind of proof")
    body, code = data[len(head):end], data[-66:-2].decode()
    if mac_key:
        expected = blake3(path.encode() + b"\0" + body, key=mac_key)
    else:
        expected = blake3(body)
    need(expected.hexdigest() == code, path, "has another hash")
    return json.loads(body)


def wrapping_key(slot, key_file, passphrase_file):
    """Returns the key that a slot's secret yields; None if that secret isn't available."""
    salt, kdf = bytes.fromhex(slot["salt"]), slot["kdf"]
    if kdf["kind"] == "key-file" and key_file:
        key = read_file(key_file)
        if len(key) != 32:
            key = bytes.fromhex(key.decode())
        return derive("lockstep 1 key file", key + salt)
    if kdf["kind"] == "argon2id" and passphrase_file:
        passphrase = read_file(passphrase_file).split(b"\n")[0].rstrip(b"\r")
        work = (kdf["passes"], kdf["memory_kib"], kdf["lanes"])
        return hash_secret_raw(passphrase, salt, *work, 32, Type.ID, 0x13)
    return None


def data_key(root, lock, key_file, passphrase_file):
    fingerprint = lock["encryption"]["fingerprint"]
    for name in sorted(os.listdir(f"{root}/keys")):
        if not name.endswith(".json"):
            continue
        slot = document(read_file(f"{root}/keys/{name}"), f"keys/{name}")
        need(slot["version"] == 1 and slot["id"] + ".json" == name, name)
        if slot["fingerprint"] != fingerprint:
            continue
        wrapping = wrapping_key(slot, key_file, passphrase_file)
        if wrapping is None:
            continue
        associated = f"lockstep 1 slot\n{lock['id']}\n{slot['id']}\n{slot['fingerprint']}\n".encode()
        nonce, wrapped = bytes.fromhex(slot["nonce"]), bytes.fromhex(slot["wrapped"])
        try:
            key = AESGCM(wrapping).decrypt(nonce, wrapped, associated)
        except InvalidTag:
            continue
        found = derive("lockstep 1 fingerprint of a data key", key).hex()
        need(found == fingerprint, name, "wraps another key")
        return key
    raise Damaged("no secret opens this repository")


# ---- A cluster's part


class Repository:
    def __init__(self, root, cluster, key_file=None, passphrase_file=None):
        self.folder = f"{root}/clusters/{cluster}"
        lock = document(read_file(f"{root}/lockstep.json"), "lockstep.json")
        need(lock["version"] == 1, "version", lock["version"])
        self.key = self.mac_key = None
        if lock.get("encryption"):
            need(lock["encryption"]["cipher"] == "aes-256-gcm", lock)
            self.key = data_key(root, lock, key_file, passphrase_file)
            self.mac_key = derive("strata 1 key of documents", self.key)
        self.deltas = {}
        self.last_frame = (None, None)

    def document(self, path):
        return document(read_file(f"{self.folder}/{path}"), path, self.mac_key)

    def sets(self):
        names = os.listdir(f"{self.folder}/sets")
        return sorted(name[:-5] for name in names if name.endswith(".json"))

    def manifest(self, name):
        manifest = self.document(f"sets/{name}.json")
        need(manifest["format"] == 1 and manifest["id"] == name, name)
        return manifest

    def delta(self, image, name):
        """A delta's descriptor, with the rows of its tables instead of their files."""
        if (image, name) not in self.deltas:
            delta = self.document(f"volumes/{image}/{name}.json")
            is_this = (delta["format"], delta["image"], delta["id"]) == (1, image, name)
            need(is_this, "delta", name, "of", image)
            for table in ("objects", "extents", "packs"):
                delta[table] = [row for file in delta[table] for row in self.table(image, file)]
            order = [(row["object"], row["offset"]) for row in delta["extents"]]
            need(order == sorted(order), "extents of", image, name)
            packs = {row["pack"]: row["size"] for row in delta["packs"]}
            for pack, size in packs.items():
                need(os.path.getsize(f"{self.folder}/packs/{pack}") == size, "size of", pack)
            named = {row["pack"] for row in delta["extents"] if row["pack"]}
            need(named == set(packs), "packs of", image, name)
            self.deltas[image, name] = delta
        return self.deltas[image, name]

    def table(self, image, file):
        """The rows of an index file."""
        name, footer = file["name"], file["footer"]
        data = read_file(f"{self.folder}/volumes/{image}/{name}")
        is_right = len(data) == file["size"] and blake3(data[footer:]).hexdigest() == file["blake3"]
        need(is_right, "footer of", name)
        parquet = pyarrow.parquet.ParquetFile(io.BytesIO(data), pre_buffer=False)
        begin = 0
        for group in (parquet.metadata.metadata or {})[b"strata.groups"].decode().split():
            end, expected = group.split(":")
            need(blake3(data[begin:int(end)]).hexdigest() == expected, "row group of", name)
            begin = int(end)
        need(begin == footer and parquet.metadata.num_rows == file["rows"], "rows of", name)
        return parquet.read(use_threads=False).to_pylist()

    def chain(self, image, name):
        """The delta and its bases, newest first."""
        chain = []
        while name is not None:
            chain.append(self.delta(image, name))
            name = chain[-1]["base"]
        return chain

    def frame(self, pack, offset, length):
        """A frame's content."""
        if self.last_frame[0] != (pack, offset):
            with open(f"{self.folder}/packs/{pack}", "rb") as file:
                file.seek(offset)
                data = file.read(length)
            self.last_frame = ((pack, offset), self.opened(pack, offset, data, length))
        return self.last_frame[1]

    def opened(self, pack, offset, data, length):
        where = f"frame {offset} of {pack}"
        need(len(data) == length and data[:4] == b"stF1" and data[5:8] == bytes(3), where)
        flags, (size, stored), payload = data[4], struct.unpack("<II", data[8:16]), data[48:]
        need(stored == len(payload) and flags < 4 and size <= 32 << 20, where)
        number = 0
        for letter in pack:
            number = number * 32 + LETTERS.index(letter)
        ulid, place = number.to_bytes(16, "big"), struct.pack("<Q", offset)
        need(blake3(ulid + place + data[:16] + payload).digest() == data[16:48], where, "has another hash")
        need(bool(flags & 2) == bool(self.key), where, "is sealed, or isn't")
        if flags & 2:
            key = derive("strata 1 key of a pack", self.key + ulid)
            payload = AESGCM(key).decrypt(place + bytes(4), payload, data[:16])
        if flags & 1:
            payload = zstandard.ZstdDecompressor().decompress(payload, max_output_size=size)
        need(len(payload) == size, "length of", where)
        return payload

    def extent(self, row):
        """The bytes of an extent."""
        need(row["form"] == 0, "form", row["form"])
        content = self.frame(row["pack"], row["frame"], row["frame_length"])
        block = content[row["start"]:row["start"] + row["size"]]
        need(len(block) == row["size"] == row["block_length"], "block of", row)
        need(row["skip"] + row["length"] <= len(block), "part of", row)
        return block[row["skip"]:row["skip"] + row["length"]]


# ---- Headers of a dataset's objects


class Header:
    def __init__(self, raw):
        need(raw[0] == 1, "header's form", raw[0])
        self.order = ">" if raw[1] & 1 else "<"
        self.knows_spills = bool(raw[1] & 2)
        self.ends_spill = bool(raw[1] & 4)
        numbers = struct.unpack("<IIIIBBBB", raw[2:22])
        self.type, self.bonus_type, self.block, self.bonus_length, _, _, slots, self.flags = numbers
        self.slots = max(slots, 1)
        self.bonus = raw[22:]
        need(len(self.bonus) == (self.bonus_length + 7) // 8 * 8, "bonus")
        self.generation = None
        if self.bonus_type == ZNODE:
            self.generation = self.number(64)
        elif self.bonus_type == ATTRIBUTES and len(self.bonus) >= 8:
            self.generation = self.number(attributes_begin(self.bonus, self.order) + 16)

    def number(self, at):
        return struct.unpack_from(self.order + "Q", self.bonus, at)[0]

    def block_pointers(self):
        if self.bonus_type == ATTRIBUTES:
            return 1
        room = self.slots * 512 - 192
        return min(3, 1 + max(room - self.bonus_length, 0) // 128)

    def goes_on_from(self, older):
        """Whether the older object's content still counts; if so, this header's block size may become smaller."""
        if (self.type, self.slots) != (older.type, older.slots):
            return False
        if self.block_pointers() < older.block_pointers():
            return False
        generations = (self.generation, older.generation)
        if None not in generations and self.generation != older.generation:
            return False
        if self.block == older.block:
            return True
        small, large = sorted((self.block, older.block))
        if self.type == PLAIN_FILE and None not in generations and small == OLD_MOST < large:
            self.block = small
            return True
        return False

    def keeps_spill_of(self, older):
        mine, theirs = ((h.bonus_type, h.bonus_length, h.block) for h in (self, older))
        return self.knows_spills or mine == theirs

    def has_spill(self):
        return not self.knows_spills or bool(self.flags & HAS_SPILL)


def attributes_begin(data, order):
    """The length of a system attributes' header."""
    return (struct.unpack_from(order + "H", data, 4)[0] >> 10) * 8


# ---- Folding


class Parts:
    """Disjoint parts of an object; later additions are below earlier ones."""

    def __init__(self):
        self.all = []

    def add(self, begin, end, row):
        new = []
        for a, b, _ in self.all:
            if a >= end:
                break
            if b <= begin:
                continue
            if begin < a:
                new.append((begin, a, row))
            begin = max(begin, b)
        if begin < end:
            new.append((begin, end, row))
        if new:
            self.all = sorted(self.all + new, key=lambda part: part[0])


class Layer:
    """A delta's rows, by object."""

    def __init__(self, delta, has_headers):
        self.rows, self.freed, self.covered = {}, [], set()
        for row in delta["objects"]:
            if row["freed"]:
                self.freed.append((row["object"], row["object"] + row["freed"]))
                continue
            self.rows[row["object"]] = row
            if has_headers and row["header"] is not None:
                slots = Header(row["header"]).slots
                self.covered.update(range(row["object"] + 1, row["object"] + slots))
        self.extents = defaultdict(list)
        for row in delta["extents"]:
            self.extents[row["object"]].append(row)

    def ends(self, number):
        return number in self.covered or any(a <= number < b for a, b in self.freed)


class Image:
    """All objects of a delta's chain, folded. For a dataset's (`has_headers`), the headers are known."""

    def __init__(self, repository, image, name, has_headers=True):
        self.repository, self.objects = repository, {}
        chain = repository.chain(image, name)
        self.layers = [Layer(delta, has_headers) for delta in chain]
        self.has_headers = has_headers
        for number in sorted({n for layer in self.layers for n in [*layer.rows, *layer.extents]}):
            folded = self.fold(number)
            if folded[0] is not None:
                self.objects[number] = folded

    def fold(self, number):
        """The object's header, spill and parts."""
        header = spill = None
        spill_counts, parts = True, Parts()
        for layer in self.layers:
            if layer.ends(number):
                break
            row = layer.rows.get(number)
            if row and row["header"] is not None:
                found = Header(row["header"]) if self.has_headers else row["header"]
                if header is None:
                    header = found
                elif self.has_headers:
                    keeps_spill = header.keeps_spill_of(found)
                    if not header.goes_on_from(found):
                        break
                    spill_counts = spill_counts and keeps_spill
            if row and spill is None and spill_counts:
                spill = row["spill"]
            if row and row["header"] is not None and self.has_headers and found.ends_spill:
                spill_counts = spill_counts and header.knows_spills
            for extent in layer.extents.get(number, ()):
                length = extent["length"]
                parts.add(extent["offset"], END if length == END else extent["offset"] + length, extent)
            if row and row["tail"] is not None:
                parts.add(row["tail"], END, None)
            if row and row["fresh"]:
                break
        if self.has_headers and header is not None and not header.has_spill():
            spill = None
        return header, spill, parts

    def read(self, number, size=None):
        """The content of an object, in pieces (offset, bytes); holes are left out."""
        for begin, end, row in self.objects[number][2].all:
            if row is None or row["pack"] is None:
                continue
            if size is not None:
                end = min(end, size)
            if begin < end:
                data = self.repository.extent(row)
                yield begin, data[begin - row["offset"]:end - row["offset"]]

    def content(self, number):
        pieces = list(self.read(number))
        whole = bytearray(max((at + len(data) for at, data in pieces), default=0))
        for at, data in pieces:
            whole[at:at + len(data)] = data
        return bytes(whole)


# ---- The file system inside


class FileSystem:
    def __init__(self, image):
        self.image = image
        master = self.zap(1)
        self.layouts, self.registry = {}, {}
        if b"SA_ATTRS" in master:
            attributes = self.zap(master[b"SA_ATTRS"][0])
            for name, value in self.zap(attributes[b"REGISTRY"][0]).items():
                self.registry[value[0] & 0xFFFF] = (name, value[0] >> 24 & 0xFFFF)
            self.layouts = {int(k): v for k, v in self.zap(attributes[b"LAYOUTS"][0]).items()}
        self.root = master[b"ROOT"][0] & NUMBER

    def zap(self, number):
        """The entries of a ZAP: name to numbers."""
        data, block = self.image.content(number), self.image.objects[number][0].block
        data += bytes(-len(data) % block)
        for order in "<>":
            kind = struct.unpack_from(order + "Q", data)[0]
            if kind == 2**63 + 3:
                return micro_zap(data, block, order)
            if kind == 2**63 + 1:
                return fat_zap(data, block, order, number)
        raise Damaged(f"object {number} is no ZAP")

    def attributes(self, number):
        """Mode, size, owners, time of change and, for a symbolic link that stores it there, the target."""
        header, spill, _ = self.image.objects[number]
        if header.bonus_type == ZNODE:
            at, (mode, size) = header.number, (header.number(72), header.number(80))
            found = {b"ZPL_MODE": mode, b"ZPL_SIZE": size, b"ZPL_UID": at(128), b"ZPL_GID": at(136)}
            target = header.bonus[264:264 + size]
            is_here = stat.S_ISLNK(mode) and len(target) == size
            return {**found, b"ZPL_MTIME": (at(16), at(24)), b"ZPL_SYMLINK": target if is_here else None}
        order, raw = header.order, {}
        for data in (header.bonus, spill):
            if data and len(data) >= 8:
                raw.update(self.laid_out(data, order, number))
        names = (b"ZPL_MODE", b"ZPL_SIZE", b"ZPL_UID", b"ZPL_GID")
        found = {name: struct.unpack(order + "Q", raw[name])[0] for name in names}
        found[b"ZPL_MTIME"] = struct.unpack(order + "QQ", raw[b"ZPL_MTIME"])
        return {**found, b"ZPL_SYMLINK": raw.get(b"ZPL_SYMLINK")}

    def laid_out(self, data, order, number):
        """The system attributes of a bonus or spill, as they are."""
        need(struct.unpack_from(order + "I", data)[0] == 0x2F505A, "system attributes of", number)
        layout = struct.unpack_from(order + "H", data, 4)[0] & 0x3FF or 1
        at, lengths = attributes_begin(data, order), 6
        for attribute in self.layouts[layout]:
            name, length = self.registry[attribute]
            if not length:
                length = struct.unpack_from(order + "H", data, lengths)[0]
                lengths += 2
            yield name, data[at:at + length]
            at += (length + 7) // 8 * 8

    def restore(self, number, path):
        found = self.attributes(number)
        mode, size = found[b"ZPL_MODE"], found[b"ZPL_SIZE"]
        seconds, nanoseconds = found[b"ZPL_MTIME"]
        times = (seconds * 10**9 + nanoseconds,) * 2
        if stat.S_ISLNK(mode):
            target = found[b"ZPL_SYMLINK"]
            os.symlink(self.image.content(number)[:size] if target is None else target[:size], path)
            os.lchown(path, found[b"ZPL_UID"], found[b"ZPL_GID"])
            os.utime(path, ns=times, follow_symlinks=False)
            return
        if stat.S_ISDIR(mode):
            os.makedirs(path, exist_ok=True)
            for name, value in self.zap(number).items():
                need(name not in (b"", b".", b"..") and b"/" not in name, "name", name, "in folder", number)
                self.restore(value[0] & NUMBER, path + b"/" + name)
        elif stat.S_ISREG(mode):
            with open(path, "wb") as file:
                for at, data in self.image.read(number, size):
                    file.seek(at)
                    file.write(data)
                file.truncate(size)
        else:
            return
        os.chown(path, found[b"ZPL_UID"], found[b"ZPL_GID"])
        os.chmod(path, stat.S_IMODE(mode))
        os.utime(path, ns=times)


def micro_zap(data, block, order):
    entries = {}
    for at in range(64, block, 64):
        if data[at + 14]:
            name = data[at + 14:at + 64].split(b"\0")[0]
            entries[name] = [struct.unpack_from(order + "Q", data, at)[0]]
    return entries


def fat_zap(data, block, order, number):
    def at(code, offset):
        return struct.unpack_from(order + code, data, offset)[0]

    need(at("Q", 8) == 0x2F52AB2AB, "fat ZAP", number)
    first, power = at("Q", 16), at("Q", 32)
    table = first * block if first else block // 2
    entries = {}
    for leaf in {at("Q", table + 8 * index) for index in range(1 << power)}:
        base = leaf * block
        need(at("Q", base) == 2**63 and at("I", base + 24) == 0x2AB1EAF, "leaf", leaf, "of", number)
        chunks = base + 48 + block // 16

        def array(chunk, length):
            whole = b""
            while len(whole) < length:
                offset = chunks + 24 * chunk
                need(data[offset] == 251, "chunk", chunk, "of leaf", leaf, "of", number)
                whole += data[offset + 1:offset + 22]
                chunk = at("H", offset + 22)
            return whole[:length]

        for entry in range(chunks, base + block - 23, 24):
            if data[entry] != 252:
                continue
            width, count = data[entry + 1], at("H", entry + 10)
            name = array(at("H", entry + 4), at("H", entry + 6)).split(b"\0")[0]
            value = array(at("H", entry + 8), count * width)
            numbers = range(0, count * width, width)
            entries[name] = [int.from_bytes(value[i:i + width], "big") for i in numbers]
    return entries


# ---- Commands


def restore(repository, name, to):
    manifest = repository.manifest(name)
    about = manifest["about"]
    need(about["version"] == 1, "version of", name)
    os.makedirs(to)
    for delta in manifest["deltas"]:
        if delta["image"] == "@files":
            restore_files(repository, delta["id"], about["manifest"]["files"], f"{to}/@files")
    for volume in about["volumes"]:
        image, path = volume["image"], f"{to}/{volume['image']}"
        if volume.get("raw"):
            restore_raw(repository, image, volume["raw"], path)
            continue
        files = FileSystem(Image(repository, image, volume["delta"]))
        files.restore(files.root, path.encode())


def restore_files(repository, delta, listed, to):
    """The set's own files: backup_label, WAL, settings."""
    listed = dict(listed)
    image = Image(repository, "@files", delta, has_headers=False)
    for number, (header, _, _) in image.objects.items():
        name, data = header.decode(), image.content(number)
        expected = listed.pop(name, None)
        need(expected is not None, name, "isn't in the manifest")
        is_right = (expected["bytes"], expected["blake3"]) == (len(data), blake3(data).hexdigest())
        need(is_right, name, "isn't as the manifest says")
        need(not {"", ".", ".."} & set(name.split("/")), "name", name)
        os.makedirs(os.path.dirname(f"{to}/{name}"), exist_ok=True)
        with open(f"{to}/{name}", "wb") as file:
            file.write(data)


def restore_raw(repository, image, chain, path):
    """The streams, in the order in which `zfs receive` accepts them."""
    for segment in chain:
        guid = segment["guid"]
        need(guid.isdigit(), "GUID", guid)
        about = repository.delta(image, guid)["about"]
        data = Image(repository, image, guid, has_headers=False).content(1)
        is_right = (about["stream_bytes"], about["blake3"]) == (len(data), blake3(data).hexdigest())
        need(is_right, "stream", guid, "of", image)
        with open(f"{path}.{guid}.zfs", "wb") as file:
            file.write(data)


def check(repository):
    """Reads each frame that a set needs, once."""
    frames = set()
    for name in repository.sets():
        for named in repository.manifest(name)["deltas"]:
            for delta in repository.chain(named["image"], named["id"]):
                rows = [row for row in delta["extents"] if row["pack"]]
                for row in sorted(rows, key=lambda row: (row["pack"], row["frame"])):
                    if (row["pack"], row["frame"]) not in frames:
                        repository.extent(row)
                        frames.add((row["pack"], row["frame"]))
    print(f"{len(repository.sets())} sets, {len(frames)} frames")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository")
    parser.add_argument("cluster")
    parser.add_argument("--key")
    parser.add_argument("--passphrase")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    commands.add_parser("check")
    restoring = commands.add_parser("restore")
    restoring.add_argument("set")
    restoring.add_argument("dir")
    given = parser.parse_args()
    repository = Repository(given.repository, given.cluster, given.key, given.passphrase)
    if given.command == "list":
        for name in repository.sets():
            deltas = repository.manifest(name)["deltas"]
            print(name, *(f"{delta['image']}:{delta['id']}" for delta in deltas))
    elif given.command == "check":
        check(repository)
    else:
        restore(repository, given.set, given.dir)


if __name__ == "__main__":
    main()
    # pyarrow's own threads, which are not used for reading, may abort the interpreter while it ends.
    sys.stdout.flush()
    os._exit(0)
