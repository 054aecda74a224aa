"""A hundred texts that hold a key and a hundred that hold none. No key is written out: they are drawn at run time."""

from __future__ import annotations

import base64
import random
import string
import uuid

LETTERS = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
BASE64 = LETTERS + "+/"
UPPER = string.ascii_uppercase + string.digits


class Draw:
    """Draws keys."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def of(self, count: int, letters: str = LETTERS) -> str:
        return "".join(self.random.choice(letters) for _ in range(count))

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))


def true_texts(seed: int = 0) -> list[str]:
    """A hundred texts, each of which holds a key."""
    d = Draw(seed)
    of = d.of
    dash = LETTERS + "-_"
    pem = "-----BEGIN {}-----"
    basic = base64.b64encode(f"team:{of(14)}".encode()).decode()
    shapes = [
        "sk-" + of(48),
        "sk-proj-" + of(64, dash),
        "sk-svcacct-" + of(48),
        "sk-ant-" + "api03-" + of(80, dash),
        "sk-or-" + "v1-" + of(64, HEX),
        "sk-" + of(32, HEX),
        "sk-lf-" + d.uuid(),
        "csk-" + of(40, string.ascii_lowercase + string.digits),
        "AI" + "za" + of(35, dash),
        "ya29" + "." + of(60, dash),
        "GOC" + "SPX-" + of(28, dash),
        "gh" + "p_" + of(36),
        "gh" + "o_" + of(36),
        "gh" + "s_" + of(36),
        "github" + "_pat_" + of(22) + "_" + of(59),
        "gl" + "pat-" + of(20, dash),
        "gl" + "rt-" + of(20, dash),
        "xo" + "xb-" + of(12, string.digits) + "-" + of(12, string.digits) + "-" + of(24),
        "xo" + "xp-" + of(12, string.digits) + "-" + of(24),
        "xa" + "pp-1-" + of(11, UPPER) + "-" + of(13, string.digits) + "-" + of(32, HEX),
        "https://hooks.slack.com/services/" + f"T{of(8, UPPER)}/B{of(8, UPPER)}/{of(24)}",
        "hf" + "_" + of(34),
        "api" + "_org_" + of(34),
        "s" + "k_live_" + of(24),
        "s" + "k_test_" + of(24),
        "r" + "k_live_" + of(24),
        "wh" + "sec_" + of(32),
        "np" + "m_" + of(36),
        "py" + "pi-AgE" + "IcHlwaS5vcmc" + of(60, dash),
        "dckr" + "_pat_" + of(27, dash),
        "ey" + "JhbGciOiJIUzI1NiJ9." + "ey" + of(40, dash) + "." + of(43, dash),
        "gs" + "k_" + of(52),
        "xa" + "i-" + of(80),
        "r8" + "_" + of(37),
        "nv" + "api-" + of(64, dash),
        "pp" + "lx-" + of(48),
        "tgp" + "_v1_" + of(43, dash),
        "fw" + "_" + of(24),
        "jina" + "_" + of(60, dash),
        "tvly" + "-dev-" + of(32),
        "lsv2" + "_pt_" + of(32, HEX) + "_" + of(10, HEX),
        "SG" + "." + of(22, dash) + "." + of(43, dash),
        "key" + "-" + of(32, HEX),
        "S" + "K" + of(32, HEX),
        "shp" + "at_" + of(32, HEX),
        "dop" + "_v1_" + of(64, HEX),
        "da" + "pi" + of(32, HEX),
        "ntn" + "_" + of(46),
        "fig" + "d_" + of(40, dash),
        "lin" + "_api_" + of(40),
        "PM" + "AK-" + of(24, HEX) + "-" + of(34, HEX),
        "AT" + "ATT3" + of(180, dash) + "=" + of(8, UPPER),
        "hv" + "s." + of(90, dash),
        "gl" + "sa_" + of(32) + "_" + of(8, HEX),
        "AGE-SECRET" + "-KEY-1" + of(58, UPPER),
        of(9, string.digits) + ":A" + "A" + of(33, dash),
        "M" + of(23) + "." + of(6, dash) + "." + of(27, dash),
        "AK" + "IA" + of(16, UPPER),
        "AS" + "IA" + of(16, UPPER),
        "LT" + "AI" + of(20),
        # Azure's new keys, its old ones, and those that Mistral, Cohere and others give.
        of(52) + "JQQJ99" + of(6) + "AC" + "OG" + of(4),
        of(32, HEX),
        of(32),
        of(40),
        of(40, BASE64),
        of(44) + "=",
        of(40, string.ascii_lowercase + string.digits),
    ]
    places = [
        "aws_secret_access_key = " + of(40, BASE64),
        "AWS_SECRET_ACCESS_KEY=" + of(40, BASE64),
        f"Authorization: Bearer {of(24)}",
        f"curl -H 'Authorization: Bearer {of(30, HEX)}' https://api.example.com",
        f"Bearer {of(20)}",
        f"Authorization: Basic {basic}",
        f"https://api.example.com/v1?auth={of(16)}",
        f"https://api.example.com/v1?api_key={of(12)}",
        f"https://api.example.com/v1/models?limit=3&key={of(20)}",
        f"https://host/v1?access_token={of(12)}",
        f"https://acct.blob.core.windows.net/c/f?sv=2022&se=2026&sr=b&sp=r&sig={of(42)}%3D",
        f"https://b.s3.amazonaws.com/f?X-Amz-Expires=60&X-Amz-Signature={of(64, HEX)}",
        f"https://me:{of(10)}@host.example.com/v1",
        f"postgres://team:{of(4)}/{of(6)}@db:5432/data",
        f"mongodb+srv://admin:{of(12)}@cluster0.example.net",
        f"redis://:{of(12)}@cache:6379/0",
        f"https://team:p%40ss{of(4)}@proxy:3128",
        f"https://me:{of(5)}/x{of(3)}+9@gateway.example.com",
        pem.format("RSA PRIVATE KEY"),
        pem.format("PRIVATE KEY") + "\n" + of(64, BASE64),
        pem.format("OPENSSH PRIVATE KEY") + "\\n" + of(64, BASE64),
        pem.format("EC PRIVATE KEY"),
        pem.format("PGP PRIVATE KEY BLOCK"),
        f"api_key: {d.uuid()}",
        f"X-API-Key: {d.uuid()}",
        f"the token is {d.uuid()}, do not share it",
        f"password: {of(3)}/{of(5)}7",
        f'{{"client_secret": "{of(20)}7"}}',
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={of(86, BASE64)}==",
        f"Endpoint=sb://x.servicebus.windows.net/;SharedAccessKey={of(43, BASE64)}=",
        f"export OPENAI_API_KEY={of(24, HEX)}",
        f"access_token={of(20)}4",
        f"use api key {'s' + 'k-'}{of(20)} for this",
    ]
    return [*shapes, *places]


FALSE_TEXTS = (
    # Prose, with words that stand beside keys elsewhere.
    "Write criteria for one question that a specialist would ask to test a colleague.",
    "The key: patience. The secret: practice, and a good night's sleep.",
    "The password is self-explanatory once you know the story.",
    "A bearer of good news is welcome everywhere; bearer authentication is not.",
    "Bearer bonds are owned by whoever holds them.",
    "Token: B-PER marks the beginning of a person's name.",
    "The token is internationalization, which the tokenizer splits into four.",
    "Key findings: 12 of 20 patients improved within 6 weeks (p = 0.03).",
    "An API key is a string that identifies a project; keep it out of source code.",
    "Set api_key_env to the name of the variable that holds the key.",
    "export OPENAI_API_KEY=...",
    "export OPENAI_API_KEY=$TEAM_KEY",
    "OPENAI_API_KEY=<your key>",
    "api_key = os.environ['TEAM_KEY']",
    "api_key=config.services.openai.key1",
    "password: ********",
    "Authorization: Bearer $TOKEN",
    "The credentials: a doctorate in law and twelve years at the bar.",
    "sk-learn-tutorial-for-beginners",
    "task-0123456789abcdef",
    "risk-adjusted-return-on-capital-employed",
    "desk-research-and-field-interviews-2024",
    "Mask-wearing-and-hand-washing recommendations",
    # Names of chemistry, formulas, sequences.
    "2-(4-isobutylphenyl)propanoic acid",
    "1,3,7-trimethylpurine-2,6-dione",
    "(2S,5R,6R)-3,3-dimethyl-7-oxo-6-[(phenylacetyl)amino]-4-thia-1-azabicyclo[3.2.0]heptane-2-carboxylic acid",
    "3,4-methylenedioxymethamphetamine",
    "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "CN1CCC23C4C1CC5=C2C(=C(C=C5)O)OC3C(C=C4)O",
    "InChI=1S/C13H18O2/c1-9(2)8-11-4-6-12(7-5-11)10(3)13(14)15/h4-7,9-10H,8H2,1-3H3,(H,14,15)",
    "HEFNNWSXXWATRW-UHFFFAOYSA-N",
    "C20H25N3O and K4Fe(CN)6",
    "ATGGCCATTGTAATGGGCCGCTGAAAGGGTGCCCGATAG",
    "AUGGCCAUUGUAAUGGGCCGCUGAAAGGGUGCCCGAUAG",
    "MVLSPADKTNVKAAWGKVGAHAGEYGAEALERMFLSFPTTKTYFPHFDLSH",
    "10M1I5M3D20M2S30M4I5M6D10M12S",
    "ENSG00000139618, ENST00000380152.8, NM_000059.4, P51587",
    "rs1799966 (NC_000017.11:g.43071077T>C)",
    # Hashes, ids, versions.
    "c1899de289a04d12100db370d81485cdf75e47ca",
    "commit 9fceb02d0ae598e95dc970b74767f19372d61af8 fixes the reader",
    "9fceb02",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha512-v2kDEe57lecTulaDIuNTPy3Ry4gLGJ6Z1O3vE1krgXZNrsQ+LFTGHVxVjcXPs17LhbZVGedAJv8XZ1tvj5FvSg==",
    "The MD5 of the archive is d41d8cd98f00b204e9800998ecf8427e.",
    "123e4567-e89b-12d3-a456-426614174000",
    "document f47ac10b-58cc-4372-a567-0e02b2c3d479, page 4",
    "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
    "10.1038/s41586-020-2649-2",
    "arXiv:2605.11461v2 [cs.CL]",
    "ISBN 978-3-16-148410-0",
    "DE89 3704 0044 0532 0130 00",
    "1HGBH41JXMN109186",
    "v1.23.4-rc.1+build.20260101.g9fceb02",
    "torch==2.9.1+cu128; python_version >= '3.11'",
    "Ubuntu 24.04.1 LTS (GNU/Linux 6.8.0-45-generic x86_64)",
    "2026-11-26T10:07:39.123456Z",
    "ISO/IEC 27001:2022, clause A.8.24",
    "+49 (0)30 1234567-89",
    # Law.
    "Brown v. Board of Education, 347 U.S. 483 (1954)",
    "BVerfGE 7, 198; BGHZ 143, 214; BGH NJW 2000, 2195",
    "ECLI:EU:C:2014:317",
    "Case C-131/12, Google Spain SL v AEPD, EU:C:2014:317, paragraph 93",
    "42 U.S.C. § 1983; 17 C.F.R. § 240.10b-5(b)",
    "Bundesgesetzblatt I 2021 S. 1858, Artikel 3 Nr. 12",
    "Az. 1 BvR 2656/18, 1 BvR 78/20, 1 BvR 96/20",
    # Beginnings of pictures and archives in base64.
    "iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4//8/w38GIAXDIBKE0DHxgljNBAAO",
    "/9j/4AAQSkZJRgABAQEASABIAAD/2wBDAAMCAgICAgMCAgIDAwMDBAYEBAQEBAgGBgUGCQgKCgkICQkKDA8MCgsO",
    "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=",
    "data:image/webp;base64,UklGRiQAAABXRUJQVlA4IBgAAAAwAQCdASoBAAEAAwA0JaQAA3AA/vuUAAA=",
    "PHN2ZyB4bWxucz0iaHR0cDovL3d3dy53My5vcmcvMjAwMC9zdmciIHdpZHRoPSIxMDAiIGhlaWdodD0iMTAwIj48",
    "JVBERi0xLjQKJcOkw7zDtsOfCjIgMCBvYmoKPDwvTGVuZ3RoIDMgMCBSL0ZpbHRlci9GbGF0ZURlY29kZT4",
    "UEsDBBQABgAIAAAAIQDfpNJsWgEAACAFAAATAAgCW0NvbnRlbnRfVHlwZXNdLnhtbCCiBAIooAAC",
    # Paths, addresses, models.
    "/home/me/models/OpenOrcaPlatypus2Mistral7BInstruct",
    "/home/me/.cache/huggingface/hub/models--google--gemma-3-270m/snapshots/9b0cfec892e2bc2afd938c98eabe4e4a7b1e0ca1",
    "C:\\Users\\me\\Documents\\Reports2026\\Q3-final_v2.docx",
    "src/main/java/com/example/service/v2/UserAccountControllerTest17.java",
    "recipes/legal.yaml:14: models.generator.max_tokens",
    "openai/gpt-5-mini",
    "unsloth/Mistral-Small-24B-Instruct-2501-reasoning-GGUF",
    "hub:mistralai/Mistral-7B-Instruct-v0.3",
    "Qwen/Qwen3-30B-A3B-Thinking-2507-FP8",
    "DeepSeek-R1-Distill-Llama-70B-Q4_K_M.gguf",
    "http://localhost:8000/v1",
    "http://host.example.org:8080/@scope/package@2.1.0",
    "https://medium.com:443/@writer/a-story-about-keys-1b2c3d",
    "https://example.com/search?q=monkey&page=2&sort_key=name&token=next",
    "https://example.com/item?key=value&auth=none",
    "https://user@example.com/path",
    "https://docs.google.com/spreadsheets/d/1BxiMVs0XRA5nFMdKvBdBZjgmUUqptlbs74OgvE2upms/edit",
    "mailto:someone@example.com?subject=Re:%20Keys",
    "git@github.com:owner/repository.git",
    "-----BEGIN CERTIFICATE REQUEST----- is the head of a request, not of a key.",
    # Languages and layouts.
    "Der Donaudampfschifffahrtsgesellschaftskapitän unterschrieb am 3.4.1912.",
    "坏血病是由缺乏维生素C引起的疾病。患者牙龈出血，伤口愈合缓慢。",
    "| Jahr | Umsatz | EBIT |\n|---|---|---|\n| 2024 | 1.234,5 | 98,7 |",
    "f(x) = \\frac{1}{\\sqrt{2\\pi\\sigma^2}} e^{-\\frac{(x-\\mu)^2}{2\\sigma^2}}",
    "rnbqkbnr/pppppppp/8/8/4P3/8/PPPP1PPP/RNBQKBNR b KQkq e3 0 1",
)
