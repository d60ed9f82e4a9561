/* A part of a JPEG, by libjpeg-turbo: what lies outside of it is read, but not made into pixels.
 *
 * Two promises, which tests/webdataset/test_jpegcrop.py holds against whole decoding:
 *  - the pixels are those of the whole picture, bit by bit;
 *  - damage anywhere in the file is an error, outside of the part too.
 * What cannot be promised so is refused, and the caller decodes the whole: progressive, arithmetic, lossless and
 * CMYK pictures, which would gain nothing, and unusual sampling, for which libjpeg-turbo is hardly tested.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jerror.h>
#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "shardfeed-jpegcrop needs libjpeg-turbo 2.1 or newer: others cannot skip rows and columns, or make other pixels"
#endif

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

/* libjpeg's error manager, where it jumps to, and why. */
struct failure {
    struct jpeg_error_mgr manager;
    jmp_buf jump;
    char reason[JMSG_LENGTH_MAX];
};

/* What is wanted: rows of `width` pixels of `channels` bytes, one after the other. */
struct part {
    unsigned char *pixels;
    JDIMENSION top, left, height, width;
    int channels;
};

static void fail(j_common_ptr cinfo)
{
    struct failure *failure = (struct failure *)cinfo->err;
    failure->manager.format_message(cinfo, failure->reason);
    longjmp(failure->jump, 1);
}

/* A warning, which is what libjpeg calls damage that it could fill with gray, is an error; the rest is chatter. */
static void fail_at_warning(j_common_ptr cinfo, int level)
{
    if (level < 0)
        fail(cinfo);
}

static void stay_silent(j_common_ptr cinfo)
{
    (void)cinfo;
}

static void refuse(j_decompress_ptr cinfo, const char *reason)
{
    struct failure *failure = (struct failure *)cinfo->err;
    snprintf(failure->reason, sizeof failure->reason, "%s", reason);
    longjmp(failure->jump, 1);
}

/* Refuse what is not promised; the header has been read. */
static void check(j_decompress_ptr cinfo, const struct part *part)
{
    const jpeg_component_info *components = cinfo->comp_info;
    int i, across = components[0].h_samp_factor, down = components[0].v_samp_factor;

    if (jpeg_has_multiple_scans(cinfo) || cinfo->arith_code || cinfo->data_precision != 8)
        refuse(cinfo, "only sequential Huffman pictures of 8 bits are decoded in part");
    if (cinfo->jpeg_color_space != JCS_GRAYSCALE && cinfo->jpeg_color_space != JCS_YCbCr &&
        cinfo->jpeg_color_space != JCS_RGB)
        refuse(cinfo, "only gray, YCbCr and RGB pictures are decoded in part");
    if (part->channels == 1 && cinfo->jpeg_color_space != JCS_GRAYSCALE)
        refuse(cinfo, "one channel is made of gray pictures alone");
    for (i = 1; i < cinfo->num_components; i++)
        if (components[i].h_samp_factor != 1 || components[i].v_samp_factor != 1)
            refuse(cinfo, "chroma of an unusual resolution is not decoded in part");
    if (!(across <= 2 && down <= 2) && !(across == 4 && down == 1))
        refuse(cinfo, "luma of an unusual resolution is not decoded in part");
    if (part->height == 0 || part->height > cinfo->image_height || part->top > cinfo->image_height - part->height ||
        part->width == 0 || part->width > cinfo->image_width || part->left > cinfo->image_width - part->width)
        refuse(cinfo, "the part does not lie inside the picture");
}

static void skip(j_decompress_ptr cinfo, JDIMENSION rows)
{
    if (rows > 0 && jpeg_skip_scanlines(cinfo, rows) != rows)
        refuse(cinfo, "libjpeg did not skip the rows that it was asked to");
}

static void read_row(j_decompress_ptr cinfo, JSAMPARRAY row)
{
    if (jpeg_read_scanlines(cinfo, row, 1) != 1)
        refuse(cinfo, "libjpeg gave no row");
}

/* Decode; needs no interpreter. Every way out of this runs through jpeg_destroy_decompress, which frees all there is:
 * the row, too, is in libjpeg's pool. Nothing that is set after setjmp is read after a jump. */
static int decode(const unsigned char *data, size_t size, const struct part *part, struct failure *failure)
{
    struct jpeg_decompress_struct cinfo;
    JDIMENSION margin, start, span, below, i;
    JSAMPARRAY row;

    memset(&cinfo, 0, sizeof cinfo);
    cinfo.err = jpeg_std_error(&failure->manager);
    failure->manager.error_exit = fail;
    failure->manager.emit_message = fail_at_warning;
    failure->manager.output_message = stay_silent;
    if (setjmp(failure->jump)) {
        jpeg_destroy_decompress(&cinfo);
        return 0;
    }
    jpeg_create_decompress(&cinfo);
    jpeg_mem_src(&cinfo, data, size);
    jpeg_read_header(&cinfo, TRUE);
    check(&cinfo, part);
    cinfo.out_color_space = part->channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    cinfo.dct_method = JDCT_ISLOW;
    cinfo.do_fancy_upsampling = TRUE;
    jpeg_start_decompress(&cinfo);

    /* Chroma is smoothed with its neighbours: where the cut is, it lacks them, so the cut is a block further out.
     * A narrower one would also take libjpeg's other way of upsampling, which it has for pictures of 2 columns. */
    margin = (JDIMENSION)(DCTSIZE * cinfo.max_h_samp_factor);
    start = part->left > margin ? part->left - margin : 0;
    span = cinfo.image_width - start;
    if (span > part->left - start + part->width + margin)
        span = part->left - start + part->width + margin;
    if (span < cinfo.image_width)
        jpeg_crop_scanline(&cinfo, &start, &span);
    if (start > part->left || start + span < part->left + part->width || span != cinfo.output_width)
        refuse(&cinfo, "libjpeg did not cut the columns that it was asked to");

    /* By a byte off: libjpeg-turbo writes an aligned row past the cache, from where it would then have to be fetched. */
    row = cinfo.mem->alloc_sarray((j_common_ptr)&cinfo, JPOOL_IMAGE, span * (JDIMENSION)part->channels + 1, 1);
    row[0]++;
    skip(&cinfo, part->top);
    for (i = 0; i < part->height; i++) {
        const size_t bytes = (size_t)part->width * (size_t)part->channels;
        read_row(&cinfo, row);
        memcpy(part->pixels + i * bytes, row[0] + (size_t)(part->left - start) * (size_t)part->channels, bytes);
    }
    /* Asked to skip to the end, libjpeg would not look at the rest. The last row makes it. */
    below = cinfo.output_height - cinfo.output_scanline;
    if (below > 0) {
        skip(&cinfo, below - 1);
        read_row(&cinfo, row);
    }
    jpeg_finish_decompress(&cinfo);
    jpeg_destroy_decompress(&cinfo);
    return 1;
}

static int take_part(const Py_buffer *into, Py_ssize_t top, Py_ssize_t left, struct part *part)
{
    int axis;

    if (into->ndim != 3 || into->itemsize != 1 || (into->shape[2] != 1 && into->shape[2] != 3)) {
        PyErr_SetString(PyExc_ValueError, "into must be uint8 of (height, width, 1) or (height, width, 3)");
        return 0;
    }
    for (axis = 0; axis < 2; axis++)
        if (into->shape[axis] < 1 || into->shape[axis] > JPEG_MAX_DIMENSION) {
            PyErr_SetString(PyExc_ValueError, "into must have a height and a width of 1 to " TEXT(JPEG_MAX_DIMENSION));
            return 0;
        }
    if (top < 0 || top > JPEG_MAX_DIMENSION || left < 0 || left > JPEG_MAX_DIMENSION) {
        PyErr_SetString(PyExc_ValueError, "top and left must be 0 to " TEXT(JPEG_MAX_DIMENSION));
        return 0;
    }
    part->pixels = into->buf;
    part->top = (JDIMENSION)top;
    part->left = (JDIMENSION)left;
    part->height = (JDIMENSION)into->shape[0];
    part->width = (JDIMENSION)into->shape[1];
    part->channels = (int)into->shape[2];
    return 1;
}

static PyObject *decode_part(PyObject *module, PyObject *args)
{
    Py_buffer data, into;
    PyObject *array;
    Py_ssize_t top, left;
    struct part part;
    struct failure failure;
    int decoded = 0;

    (void)module;
    if (!PyArg_ParseTuple(args, "y*Onn:decode_part", &data, &array, &top, &left))
        return NULL;
    if (PyObject_GetBuffer(array, &into, PyBUF_CONTIG) == 0) {
        if (take_part(&into, top, left, &part)) {
            Py_BEGIN_ALLOW_THREADS
            decoded = decode(data.buf, (size_t)data.len, &part, &failure);
            Py_END_ALLOW_THREADS
            if (!decoded)
                PyErr_SetString(PyExc_ValueError, failure.reason);
        }
        PyBuffer_Release(&into);
    }
    PyBuffer_Release(&data);
    if (!decoded)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"decode_part", decode_part, METH_VARARGS, NULL}, /* documented in __init__.py and its stub */
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "shardfeed_jpegcrop._decoder", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__decoder(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddStringConstant(module, "LIBJPEG_TURBO", TEXT(LIBJPEG_TURBO_VERSION)) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
